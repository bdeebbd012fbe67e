"""The two criss-cross modules, their recurrence, and a defect of the published notebook."""

import pytest
import torch

from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerModel
from ccsegformer.models.attention.ccnet import CCNetAttention
from ccsegformer.models.attention.criss_cross import CrissCrossAttention


def tokens(height: int, width: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, height * width, channels, generator=generator, dtype=torch.float64)


def make(kind: str, channels: int = 16, recurrence: int = 1) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "multi_head":
        return CrissCrossAttention(channels, 2, recurrence).double()
    module = CCNetAttention(channels, recurrence).double()
    torch.nn.init.constant_(module.gamma, 0.7)  # at 0 any attention would pass
    return module


@pytest.mark.parametrize("kind", ["multi_head", "ccnet"])
def test_against_a_loop_over_positions(kind: str) -> None:
    height, width, channels, heads = 4, 5, 16, 2 if kind == "multi_head" else 1
    module, x = make(kind, channels), tokens(4, 5, channels)
    names = ("q_proj", "k_proj", "v_proj") if kind == "multi_head" else ("query", "key", "value")
    query, key, value = (getattr(module, name)(x)[0].view(height, width, heads, -1) for name in names)
    scale = query.shape[-1] ** -0.5 if kind == "multi_head" else 1.0
    expected = torch.zeros(height * width, channels, dtype=torch.float64)
    for h in range(height):
        for w in range(width):
            cross = [(h, i) for i in range(width)] + [(i, w) for i in range(height) if i != h]
            for n in range(heads):
                scores = torch.stack([query[h, w, n] @ key[y, i, n] * scale for y, i in cross]).softmax(0)
                out = sum(score * value[y, i, n] for score, (y, i) in zip(scores, cross, strict=True))
                size = channels // heads
                expected[h * width + w, n * size : (n + 1) * size] = out
    expected = module.o_proj(expected) if kind == "multi_head" else module.gamma * expected
    torch.testing.assert_close(module(x, height, width)[0][0], expected)


@pytest.mark.parametrize("kind", ["multi_head", "ccnet"])
@pytest.mark.parametrize(("recurrence", "reaches"), [(1, False), (2, True)])
def test_what_a_position_sees(kind: str, recurrence: int, reaches: bool) -> None:
    # One application reaches the position's row and column, two reach the whole image.
    module, x = make(kind, recurrence=recurrence), tokens(5, 6, 16).requires_grad_()
    module(x, 5, 6)[0][0, 2 * 6 + 3].sum().backward()
    seen = x.grad[0].abs().sum(-1).view(5, 6) > 0
    cross = torch.zeros(5, 6, dtype=torch.bool)
    cross[2], cross[:, 3] = True, True
    assert torch.equal(seen, torch.ones_like(cross) if reaches else cross)


@pytest.mark.parametrize("kind", ["multi_head", "ccnet"])
def test_recurrence_shares_its_weights_and_counts_the_input_once(kind: str) -> None:
    once, twice, x = make(kind), make(kind, recurrence=2), tokens(3, 4, 16)
    assert [name for name, _ in once.named_parameters()] == [name for name, _ in twice.named_parameters()]
    first = once(x, 3, 4)[0]
    second = once(x + first, 3, 4)[0]
    torch.testing.assert_close(twice(x, 3, 4)[0], first + second)


def test_ccnet_adds_nothing_at_first() -> None:
    module = CCNetAttention(16, 1).double()
    assert module.gamma.item() == 0
    assert not module(tokens(3, 4, 16), 3, 4)[0].any()


def test_a_block_adds_one_residual() -> None:
    # With gamma at 0, ccnet equals the control. The published notebook added the residual twice.
    sizes = {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_attention_heads": (1, 1, 1, 1)}
    ccnet = CrissCrossSegformerModel(CrissCrossSegformerConfig(**sizes, projection="ccnet")).eval()
    control = CrissCrossSegformerModel(CrissCrossSegformerConfig(**sizes, attention="none")).eval()
    unused = control.load_state_dict(ccnet.state_dict(), strict=False)
    assert not unused.missing_keys
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ccnet(pixels).last_hidden_state, control(pixels).last_hidden_state)


def test_lepe_adds_nothing_at_first_and_sees_the_diagonal() -> None:
    config = CrissCrossSegformerConfig.mit("b0", num_labels=3)
    attention = CrissCrossSegformerModel(config).stages[1].blocks[0].attention
    plain = CrissCrossAttention(64, 2, 1)
    plain.load_state_dict(attention.state_dict(), strict=False)
    x = torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention.attend(x, 4, 5), plain.attend(x, 4, 5))
    torch.nn.init.ones_(attention.lepe.weight)
    moved = x.clone()
    moved[:, 6] += torch.arange(64) / 64  # row 1, column 1, diagonal to row 0, column 0
    change = (attention.attend(moved, 4, 5) - attention.attend(x, 4, 5)).abs().amax(dim=(0, 2))
    assert change[0] > 1e-3
    assert change[3] < 1e-5
