"""The exporters' form of criss-cross attention is as accurate as any backend, or NaN, but never wrong."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ccsegformer.ops import criss_cross_attention
from ccsegformer.ops.explicit import LANDMARKS, explicit_criss_cross_attention
from ccsegformer.ops.reference import _cross_scores, reference_criss_cross_attention

SIZES = [(1, 1), (1, 7), (33, 1), (2, 2), (7, 33), (33, 7), (16, 17), (40, 65)]
DECOMPOSITION = {torch.ops.ccsegformer.flash_criss_cross.default: explicit_criss_cross_attention}


def tensors(*shape: int, value_dim: int | None = None) -> list[Tensor]:
    """Return query, key and value in float64 with values that float32 represents exactly."""
    generator = torch.Generator().manual_seed(0)
    shapes = (shape, shape, (*shape[:-1], value_dim or shape[-1]))
    return [torch.randn(each, generator=generator).double() for each in shapes]


def hide_landmarks(depth: float) -> list[Tensor]:
    """Return inputs in which one key of each line, not a landmark, scores `depth` above the others.

    This holds at scale 0.5. Both passes have about the same weight.
    """
    length, hidden = LANDMARKS + 1, LANDMARKS
    assert hidden not in {mark * length // LANDMARKS for mark in range(LANDMARKS)}
    query, key, value = tensors(1, 3, length, length, 4)
    query, key = torch.ones_like(query), torch.zeros_like(key)
    key[..., hidden, :], key[:, :, hidden] = depth / 2, (depth + 0.5) / 2
    return [query, key, value]


def in_float32(attend: Callable[..., Tensor], inputs: list[Tensor], scale: float) -> Tensor:
    return attend(*(tensor.float() for tensor in inputs), scale).double()


def explicit(*args) -> Tensor:
    return explicit_criss_cross_attention(*args)[0]


@pytest.mark.parametrize("head_dim", [4, 32])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_accurate_as_the_reference(size: tuple[int, int], head_dim: int) -> None:
    # The tolerance is twice the reference's own error against float64.
    inputs = tensors(2, 3, *size, head_dim)
    exact = reference_criss_cross_attention(*inputs, 0.3)
    torch.testing.assert_close(explicit(*inputs, 0.3), exact, atol=1e-12, rtol=1e-10)
    ours, theirs = (
        (in_float32(attend, inputs, 0.3) - exact).square().mean().sqrt()
        for attend in (explicit, reference_criss_cross_attention)
    )
    assert ours <= 2 * theirs + 2e-6


@pytest.mark.parametrize(("head_dim", "value_dim"), [(3, 24), (24, 3)])
def test_value_dim_may_differ(head_dim: int, value_dim: int) -> None:
    inputs = tensors(2, 1, 7, 18, head_dim, value_dim=value_dim)
    exact = reference_criss_cross_attention(*inputs, 1.0)
    torch.testing.assert_close(explicit(*inputs, 1.0), exact, atol=1e-12, rtol=1e-10)


def test_the_log_sum_exp() -> None:
    query, key, value = tensors(2, 3, 19, 35, 8)
    _, lse = explicit_criss_cross_attention(query, key, value, 0.5)
    expected = _cross_scores(query, key, 0.5).logsumexp(dim=-1)
    torch.testing.assert_close(lse, expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize("spread", [10, 40, 100])
def test_large_scores_are_right_or_nan(spread: int) -> None:
    query, key, value = tensors(1, 2, 40, 200, 16)
    inputs = [spread * query, key, value]
    exact = reference_criss_cross_attention(*inputs, 0.25)
    ours, theirs = (
        in_float32(attend, inputs, 0.25) - exact for attend in (explicit, reference_criss_cross_attention)
    )
    is_number = ours.isfinite()
    assert is_number.all() if spread == 10 else 0.2 < is_number.double().mean() < 1
    assert ours[is_number].abs().max() <= 3 * theirs.abs().max()


def test_in_short_lines_every_key_is_a_landmark() -> None:
    query, key, value = tensors(1, 2, 9, LANDMARKS, 16)
    inputs = [1000 * query, key, value]
    exact = reference_criss_cross_attention(*inputs, 0.25)
    torch.testing.assert_close(in_float32(explicit, inputs, 0.25), exact, atol=1e-3, rtol=0)


@pytest.mark.parametrize("depth", [*range(0, 60, 7), *range(60, 110)])
def test_landmarks_far_below_the_largest_score(depth: int) -> None:
    inputs = hide_landmarks(depth)
    exact = reference_criss_cross_attention(*inputs, 0.5)
    ours = in_float32(explicit, inputs, 0.5)
    is_number = ours.isfinite()
    torch.testing.assert_close(ours[is_number], exact[is_number], atol=3e-5, rtol=0)
    if depth < 68:
        assert is_number.all()
    if depth > 72:
        assert not is_number[0, 0, :-1, :-1].any()


class Attend(torch.nn.Module):
    """Module that applies criss-cross attention, by the public function or in explicit form."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attend(query, key, value)


def program(attend: Callable[..., Tensor]) -> torch.export.ExportedProgram:
    sizes = {
        axis: torch.export.Dim(name, min=1) for axis, name in ((0, "batch"), (2, "height"), (3, "width"))
    }
    example = tuple(tensor.float() for tensor in tensors(2, 3, 20, 35, 4))
    return torch.export.export(
        Attend(attend), example, dynamic_shapes={name: sizes for name in ("query", "key", "value")}
    )


@pytest.mark.parametrize(
    ("attend", "smallest"),
    [(criss_cross_attention, 1), (lambda *args: explicit(*args, 0.5), 2)],
    ids=["decomposed", "traced"],
)
def test_exports_for_every_size(attend: Callable[..., Tensor], smallest: int) -> None:
    module = program(attend).run_decompositions(DECOMPOSITION).module()
    for batch, height, width in ((1, smallest, smallest), (1, 2, 40), (3, 130, 2), (4, 15, 16), (1, 64, 65)):
        inputs = [tensor.float() for tensor in tensors(batch, 3, height, width, 4)]
        torch.testing.assert_close(
            module(*inputs), reference_criss_cross_attention(*inputs, 0.5), atol=2e-6, rtol=2e-6
        )


def test_nothing_separates_the_products_from_the_softmax() -> None:
    # Compilers recognise attention as bmm, softmax, bmm of rank-3 tensors.
    graph = program(criss_cross_attention).run_decompositions(DECOMPOSITION).graph
    assert not any("ccsegformer" in str(node.target) for node in graph.nodes)
    softmaxes = [node for node in graph.nodes if node.target == torch.ops.aten.softmax.int]
    assert len(softmaxes) == 2
    for softmax in softmaxes:
        around = [softmax.args[0], *softmax.users]
        assert [node.target for node in around] == [torch.ops.aten.bmm.default] * 2
        assert len(softmax.args[0].users) == 1
