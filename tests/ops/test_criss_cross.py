"""Reference against brute force, backends against the reference, and PyTorch's own operator checks."""

import itertools

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from ccsegformer.ops import criss_cross_attention, criss_cross_weights, flash

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SIZES = [(1, 1), (1, 7), (33, 1), (7, 33), (33, 7), (40, 64)]


def tensors(
    shape: tuple[int, ...], *, value_dim: int | None = None, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    """Return a random query, key, value and output gradient."""
    generator = torch.Generator().manual_seed(seed)
    value_shape = (*shape[:-1], value_dim or shape[-1])
    return [
        torch.randn(each, generator=generator, dtype=torch.float64).to(dtype)
        for each in (shape, shape, value_shape, value_shape)
    ]


def brute_force(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute the definition position by position."""
    batch, heads, height, width, _ = query.shape
    out = torch.zeros_like(value)
    for b, n, h, w in itertools.product(range(batch), range(heads), range(height), range(width)):
        cross = {(h, x) for x in range(width)} | {(y, w) for y in range(height)}
        assert len(cross) == height + width - 1
        scores = {p: float(query[b, n, h, w] @ key[b, n, p[0], p[1]]) * scale for p in cross}
        total = sum(torch.tensor(score).double().exp() for score in scores.values())
        for (y, x), score in scores.items():
            out[b, n, h, w] += torch.tensor(score).double().exp() / total * value[b, n, y, x]
    return out


def outputs_and_gradients(
    backend: str, inputs: list[Tensor], dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    *leaves, gradient = (tensor.to(device, dtype, copy=True) for tensor in inputs)
    for leaf in leaves:
        leaf.requires_grad_()
    out = criss_cross_attention(*leaves, backend=backend)
    out.backward(gradient)
    return [out.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 4), (2, 3, 4, 5, 4), (1, 2, 6, 1, 3)])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_reference_follows_the_definition(shape: tuple[int, ...], scale: float | None) -> None:
    query, key, value, _ = tensors(shape, value_dim=6)
    expected = brute_force(query, key, value, shape[-1] ** -0.5 if scale is None else scale)
    torch.testing.assert_close(criss_cross_attention(query, key, value, scale=scale), expected)


def test_flash_follows_the_definition() -> None:
    query, key, value, _ = tensors((2, 3, 4, 5, 8), dtype=torch.float32)
    expected = brute_force(*(tensor.double() for tensor in (query, key, value)), 8**-0.5)
    out = criss_cross_attention(query, key, value, backend="flash")
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-5)


def test_gradcheck_of_the_reference() -> None:
    *inputs, _ = tensors((1, 2, 3, 4, 2))
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q, k, v: criss_cross_attention(q, k, v, backend="reference"), inputs
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [16, 32, 64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_flash_is_as_accurate_as_the_reference(
    size: tuple[int, int], head_dim: int, dtype: torch.dtype, device: str
) -> None:
    # The tolerance is twice the reference's own error against float64 in the same dtype.
    inputs = [tensor.to(dtype).double() for tensor in tensors((1, 2, *size, head_dim))]
    exact = outputs_and_gradients("reference", inputs, torch.float64)
    reference = outputs_and_gradients("reference", inputs, dtype)
    fast = outputs_and_gradients("flash", inputs, dtype, device)
    for name, ours, theirs, truth in zip(("out", "dq", "dk", "dv"), fast, reference, exact, strict=True):
        ours_error, theirs_error = ((each.double() - truth).square().mean().sqrt() for each in (ours, theirs))
        assert ours_error <= 2 * theirs_error + 2e-6, f"{name}: {ours_error:.1e} against {theirs_error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("as_sequences", [flash._as_rows, flash._as_columns])
def test_cuda_kernels_are_called_correctly(as_sequences: flash.AsSequences, dtype: torch.dtype) -> None:
    # Fake tensors check the calls and the shapes and dtypes of their results without a GPU.
    shape = (2, 7, 33, 3, 16)
    with FakeTensorMode():
        query, key, value, gradient = (torch.empty(shape, dtype=dtype, device="cuda") for _ in range(4))
        out, lse = flash._attend_sequences(as_sequences, (query, key, value), 0.25)
        assert (out.shape, out.dtype, lse.shape, lse.dtype) == (shape, dtype, shape[:-1], torch.float32)
        grads = flash._sequence_gradients(as_sequences, (gradient, query, key, value, out, lse), 0.25)
        assert [(grad.shape, grad.dtype, grad.device.type) for grad in grads] == [(shape, dtype, "cuda")] * 3


@pytest.mark.parametrize("elements", [1, 2000])
def test_strips_change_nothing(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors((2, 3, 7, 33, 16))
    whole = outputs_and_gradients("flash", inputs, torch.float32)
    monkeypatch.setattr(flash, "STRIP_ELEMENTS", elements)
    assert len(list(flash._cut_strips(torch.empty(2, 7, 33, 3, 16), dim=2))) > 4
    for ours, expected in zip(outputs_and_gradients("flash", inputs, torch.float32), whole, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_large_scores_do_not_overflow() -> None:
    query, key, value, gradient = tensors((1, 1, 9, 5, 16))
    inputs = [40 * query, 40 * key, value, gradient]
    exact = outputs_and_gradients("reference", inputs, torch.float64)
    for ours, truth in zip(outputs_and_gradients("flash", inputs, torch.float32), exact, strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize(("head_dim", "value_dim"), [(4, 32), (32, 4)])
def test_value_dim_may_differ(head_dim: int, value_dim: int) -> None:
    inputs = tensors((1, 2, 7, 9, head_dim), value_dim=value_dim)
    exact = outputs_and_gradients("reference", inputs, torch.float64)
    fast = outputs_and_gradients("flash", inputs, torch.float32)
    for ours, truth in zip(fast, exact, strict=True):
        assert ours.shape == truth.shape
        torch.testing.assert_close(ours.double(), truth, atol=1e-5, rtol=1e-4)


def test_non_contiguous_inputs() -> None:
    query, key, value, _ = tensors((2, 2, 8, 6, 16), dtype=torch.float32)
    expected = criss_cross_attention(query, key, value, backend="flash")
    strided = [
        tensor.permute(4, 2, 0, 3, 1).contiguous().permute(2, 4, 1, 3, 0) for tensor in (query, key, value)
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(criss_cross_attention(*strided, backend="flash"), expected)


def test_two_runs_are_bit_identical() -> None:
    inputs = tensors((2, 2, 33, 64, 32), dtype=torch.float32)
    first, second = (outputs_and_gradients("flash", inputs, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_unwritten_memory_is_never_read() -> None:
    # With deterministic algorithms, PyTorch fills new memory with NaN.
    inputs = tensors((2, 2, 7, 33, 16), dtype=torch.float32)
    expected = outputs_and_gradients("flash", inputs, torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        poisoned = outputs_and_gradients("flash", inputs, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(expected, poisoned, strict=True))


def test_memory_is_linear_in_the_positions() -> None:
    # The largest tensor that any operator returns has O(N d) elements, not O(N (H + W)).
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for each in result if isinstance(result, tuple | list) else (result,):
                if isinstance(each, Tensor):
                    largest = max(largest, each.numel())
            return result

    height, width, head_dim = 96, 128, 8
    inputs = tensors((1, 1, height, width, head_dim), dtype=torch.float32)
    with Largest():
        outputs_and_gradients("flash", inputs, torch.float32)
    assert 0 < largest <= height * width * head_dim


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # from opcheck itself
@pytest.mark.parametrize("needs_grad", [False, True])
def test_opcheck(needs_grad: bool) -> None:
    query, key, value, _ = (
        tensor.requires_grad_(needs_grad) for tensor in tensors((2, 2, 5, 6, 16), dtype=torch.float32)
    )
    opcheck(torch.ops.ccsegformer.flash_criss_cross.default, (query, key, value, 0.25))


def test_compiles_without_graph_breaks() -> None:
    inputs = tensors((1, 2, 9, 6, 16), dtype=torch.float32)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return criss_cross_attention(query, key, value).square().sum()

    leaves = [tensor.requires_grad_() for tensor in inputs[:3]]
    expected = torch.autograd.grad(attend(*leaves), leaves)
    compiled = torch.autograd.grad(
        torch.compile(attend, fullgraph=True, backend="aot_eager")(*leaves), leaves
    )
    for ours, truth in zip(compiled, expected, strict=True):
        torch.testing.assert_close(ours, truth)


def test_exports_with_dynamic_sizes() -> None:
    class Attend(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return criss_cross_attention(query, key, value)

    dynamic = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    example = tuple(tensors((2, 2, 8, 10, 16), dtype=torch.float32)[:3])
    program = torch.export.export(Attend(), example, dynamic_shapes=(dynamic,) * 3)
    other = tensors((3, 2, 5, 7, 16), dtype=torch.float32)[:3]
    torch.testing.assert_close(program.module()(*other), criss_cross_attention(*other))


def test_float64_uses_the_reference() -> None:
    query, key, value, _ = tensors((1, 1, 2, 3, 4))
    assert criss_cross_attention(query, key, value).dtype == torch.float64
    with pytest.raises(ValueError, match=r"flash backend does not support .*float64"):
        criss_cross_attention(query, key, value, backend="flash")


def test_weights_of_a_position_reproduce_its_output() -> None:
    query, key, value, _ = tensors((2, 3, 5, 6, 4))
    row, column = criss_cross_weights(query, key, (2, 4))
    assert row.shape == (2, 3, 6) and column.shape == (2, 3, 5)
    assert torch.all(column[..., 2] == 0)
    torch.testing.assert_close(row.sum(-1) + column.sum(-1), torch.ones(2, 3, dtype=torch.float64))
    out = torch.einsum("bnx,bnxd->bnd", row, value[:, :, 2]) + torch.einsum(
        "bny,bnyd->bnd", column, value[:, :, :, 4]
    )
    torch.testing.assert_close(out, criss_cross_attention(query, key, value)[:, :, 2, 4])
    with pytest.raises(IndexError, match="outside the 5 x 6 grid"):
        criss_cross_weights(query, key, (5, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), "query must be"),
        (lambda q, k, v: (q[:, :, :0], k[:, :, :0], v[:, :, :0]), "all at least 1"),
        (lambda q, k, v: (q, k[:, :, :, :1], v), "key has shape"),
        (lambda q, k, v: (q, k, v[:, :, :, :1]), "value must be"),
        (lambda q, k, v: (q, k.half(), v), "key is torch.float16 on cpu"),
        (lambda q, k, v: (q.int(), k.int(), v.int()), "must be floating point"),
    ],
)
def test_bad_tensors_are_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        criss_cross_attention(*change(*tensors((1, 1, 2, 3, 4))[:3]))


def test_unknown_backend_is_refused() -> None:
    query, key, value, _ = tensors((1, 1, 2, 3, 4), dtype=torch.float32)
    with pytest.raises(ValueError, match="backend must be"):
        criss_cross_attention(query, key, value, backend="fastest")  # type: ignore[arg-type]
