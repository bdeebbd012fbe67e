"""Each dropout acts in training only, at its own rate and in the right place."""

import pytest
import torch
from torch import Tensor, nn

from ccsegformer.models import (
    CrissCrossSegformerConfig,
    CrissCrossSegformerForSemanticSegmentation,
    CrissCrossSegformerModel,
)

NONE = {"drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CHANNELS, HEADS = 8, 2
SIZES = {"hidden_sizes": (CHANNELS,) * 4, "num_attention_heads": (HEADS,) * 4, "decoder_hidden_size": 16}
SIDE = 8  # the first stage reduces by this, so Efficient Self-Attention has one key, with weight 1
IMAGES = 4000
TOLERANCE = 0.03  # nearly four standard deviations of a share of this many images


def blocks(attention: str, depths: tuple[int, ...] = (1, 1, 1, 1), **rates: float) -> list[nn.Module]:
    """Return all blocks in training mode. Each branch returns ones, except where values are dropped."""
    torch.manual_seed(0)
    config = CrissCrossSegformerConfig(**SIZES, depths=depths, attention=attention, **{**NONE, **rates})
    found = [block for stage in CrissCrossSegformerModel(config).train().stages for block in stage.blocks]
    for block in found:
        make_ones(block.attention)
        make_ones(block.mlp)
    return found


def make_ones(branch: nn.Module) -> None:
    """Set the weights of a branch so that it returns ones."""
    silence(branch)
    if hasattr(branch, "v_proj"):
        nn.init.ones_(branch.v_proj.bias)
        nn.init.eye_(branch.o_proj.weight)
    else:
        nn.init.ones_(branch.dwconv.dwconv.bias)
        nn.init.eye_(branch.fc2.weight)
        branch.fc2.weight.data /= nn.functional.gelu(torch.ones(()))


def silence(branch: nn.Module) -> None:
    for parameter in branch.parameters():
        nn.init.zeros_(parameter)


@torch.no_grad()
def added(block: nn.Module, images: int, side: int) -> Tensor:
    """Return what the block adds to zeros (images, side * side, channels)."""
    return block(torch.zeros(images, side * side, CHANNELS), side, side)


def assert_shares(values: Tensor, expected: dict[float, float]) -> None:
    """Check that exactly these values occur, with these shares."""
    found = [torch.isclose(values, torch.tensor(value)).double().mean().item() for value in expected]
    assert found == pytest.approx(list(expected.values()), abs=TOLERANCE)
    assert sum(found) == pytest.approx(1)


def test_stochastic_depth_rises_from_block_to_block() -> None:
    everything = blocks("criss_cross", depths=(2, 1, 3, 2), drop_path_rate=0.7)
    assert len(everything) == 8
    for place, block in enumerate(everything):
        rate = 0.7 * place / 7
        kept = 1 / (1 - rate)
        whole = added(block, IMAGES, side=2)
        assert torch.equal(whole, whole[:, :1, :1].expand_as(whole)), "an image is dropped as a whole"
        # The two branches are dropped independently.
        shares = {0.0: rate**2, kept: 2 * rate * (1 - rate), 2 * kept: (1 - rate) ** 2}
        assert_shares(whole[:, 0, 0], shares)
        assert torch.equal(added(block.eval(), 4, side=2), torch.full((4, 4, CHANNELS), 2.0))
        silence(block.train().mlp)
        assert_shares(added(block, IMAGES, side=2)[:, 0, 0], {0.0: rate, kept: 1 - rate})
        make_ones(block.mlp)
        silence(block.attention)
        assert_shares(added(block, IMAGES, side=2)[:, 0, 0], {0.0: rate, kept: 1 - rate})


@pytest.mark.parametrize("attention", ["efficient", "criss_cross"])
def test_hidden_dropout_follows_attention_activation_and_mlp(attention: str) -> None:
    rate = 0.3
    kept = 1 / (1 - rate)
    block = blocks(attention, hidden_dropout_prob=rate)[0]
    whole = added(block.eval(), 4, SIDE)
    torch.testing.assert_close(whole, torch.full_like(whole, 2.0))
    silence(block.train().mlp)
    assert_shares(added(block, 10, SIDE), {0.0: rate, kept: 1 - rate})
    make_ones(block.mlp)
    silence(block.attention)
    assert_shares(added(block, 10, SIDE), {0.0: 1 - (1 - rate) ** 2, kept**2: (1 - rate) ** 2})


def test_attention_dropout_drops_weights() -> None:
    rate = 0.4
    block = blocks("efficient", attention_probs_dropout_prob=rate)[0]
    silence(block.mlp)
    by_head = added(block, 100, SIDE).unflatten(2, (HEADS, -1))
    assert_shares(by_head[..., 0], {0.0: rate, 1 / (1 - rate): 1 - rate})
    assert torch.equal(by_head, by_head[..., :1].expand_as(by_head)), "a head's channels share one weight"
    whole = added(block.eval(), 4, SIDE)
    torch.testing.assert_close(whole, torch.ones_like(whole))


def test_classifier_dropout_precedes_the_classifier() -> None:
    rate = 0.25
    torch.manual_seed(0)
    config = CrissCrossSegformerConfig(
        **SIZES, depths=(1, 1, 1, 1), num_labels=16, classifier_dropout_prob=rate, **NONE
    )
    model = CrissCrossSegformerForSemanticSegmentation(config)
    head = model.decode_head
    nn.init.zeros_(head.batch_norm.weight)
    nn.init.ones_(head.batch_norm.bias)
    nn.init.zeros_(head.classifier.bias)
    nn.init.eye_(head.classifier.weight[:, :, 0, 0])
    with torch.no_grad():
        assert_shares(model.train()(torch.zeros(4, 3, 64, 64)).logits, {0.0: rate, 1 / (1 - rate): 1 - rate})
        logits = model.eval()(torch.zeros(4, 3, 64, 64)).logits
    torch.testing.assert_close(logits, torch.ones_like(logits))


def test_nothing_is_dropped_at_rate_0() -> None:
    for block in blocks("efficient"):
        whole = added(block, 4, SIDE)
        torch.testing.assert_close(whole, torch.full_like(whole, 2.0))
