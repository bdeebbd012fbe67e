"""Recorded queries and keys give the weights with which the model attends."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from ccsegformer.errors import EngineError
from ccsegformer.models import attention_weights
from ccsegformer.models.attention_weights import (
    AttentionApplication,
    composed_weights,
    consecutive_crosses,
    cross_weights,
    position_of,
    record_attention,
    reduced_weights,
)
from ccsegformer.models.modeling_ccsegformer import CrissCrossSegformerForSemanticSegmentation
from tests.models.test_modeling import pixels, shake, tiny

IMAGE = pixels(1, 64, 104).double()  # grids 16 x 26, 8 x 13, 4 x 7 and 2 x 4


def model_with(**overrides: object) -> CrissCrossSegformerForSemanticSegmentation:
    model = tiny(**overrides).double().eval()
    shake(model)
    return model


def attended(application: AttentionApplication, attention: nn.Module, tokens: Tensor) -> Tensor:
    """Attend with dense weights from the recorded functions: what the block's attention must return."""
    height, width = application.grid
    value = attention.v_proj(tokens)[0].unflatten(0, (height, width))
    heads = application.query.shape[0]
    value = value.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3)
    out = torch.zeros_like(value)
    for h in range(height):
        for w in range(width):
            row, column = cross_weights(application, (h, w))
            out[:, h, w] = torch.einsum("nx,nxd->nd", row, value[:, h])
            out[:, h, w] += torch.einsum("ny,nyd->nd", column, value[:, :, w])
    return attention.o_proj(out.permute(1, 2, 0, 3).flatten(2).flatten(0, 1))[None]


def observed(model: nn.Module, stage: int, block: int = 0) -> tuple[Tensor, Tensor, int, int]:
    """Return a block's attention's input and output for `IMAGE`."""
    seen: list[tuple[Tensor, Tensor, int, int]] = []
    attention = model.segformer.stages[stage].blocks[block].attention
    handle = attention.register_forward_hook(
        lambda _, inputs, out: seen.append((inputs[0], out[0], *inputs[1:]))
    )
    with torch.no_grad():
        model(IMAGE)
    handle.remove()
    return seen[0]


@torch.no_grad()
def test_a_cross_reproduces_the_output_of_its_block() -> None:
    model = model_with(lepe=False)
    applications = record_attention(model, IMAGE)
    assert [(each.stage, each.block, each.grid) for each in applications] == [
        (0, 0, (16, 26)), (1, 0, (8, 13)), (2, 0, (4, 7)), (3, 0, (2, 4))
    ]  # fmt: skip
    for stage in (1, 2):
        tokens, output, _, _ = observed(model, stage)
        attention = model.segformer.stages[stage].blocks[0].attention
        torch.testing.assert_close(attended(applications[stage], attention, tokens), output)


@torch.no_grad()
def test_a_recurrence_is_recorded_application_by_application() -> None:
    model = model_with(lepe=False, recurrence=2, depths=(1, 1, 2, 1))
    applications = record_attention(model, IMAGE)
    assert [(each.stage, each.block, each.application) for each in applications] == [
        *((0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)),
        *((2, 0, 0), (2, 0, 1), (2, 1, 0), (2, 1, 1), (3, 0, 0), (3, 0, 1)),
    ]
    tokens, output, _, _ = observed(model, 2, 1)
    attention = model.segformer.stages[2].blocks[1].attention
    first = attended(applications[6], attention, tokens)
    torch.testing.assert_close(first + attended(applications[7], attention, tokens + first), output)


@torch.no_grad()
def test_ccnets_projections_have_one_head_and_no_scale() -> None:
    applications = record_attention(model_with(projection="ccnet"), IMAGE)
    assert [(len(each.query), each.scale) for each in applications] == [(1, 1.0)] * 4
    one = applications[1]
    row, column = cross_weights(one, (3, 5))
    scores = torch.cat([one.key[0, 3], one.key[0, [0, 1, 2, 4, 5, 6, 7], 5]]) @ one.query[0, 3, 5]
    expected = softmax(scores, dim=0)
    torch.testing.assert_close(row[0], expected[:13])
    torch.testing.assert_close(column[0], torch.cat([expected[13:16], expected.new_zeros(1), expected[16:]]))


@torch.no_grad()
def test_efficient_weights_are_those_that_transformers_returns() -> None:
    model = model_with(attention="efficient", attn_implementation="eager")
    applications = record_attention(model, IMAGE)
    assert [(each.ratio, each.key.shape[1:3]) for each in applications] == [
        (8, (2, 3)), (4, (2, 3)), (2, (2, 3)), (1, (2, 4))
    ]  # fmt: skip
    for stage, one in enumerate(applications):
        tokens, _, height, width = observed(model, stage)
        _, weights = model.segformer.stages[stage].blocks[0].attention(tokens, height, width)
        assert weights is not None
        h, w = height - 1, 2
        maps = reduced_weights(one, (h, w))
        torch.testing.assert_close(maps.flatten(1), weights[0, :, h * width + w])


@torch.no_grad()
def test_the_composition_is_a_row_of_the_product() -> None:
    model = model_with(
        depths=(2, 1, 1, 1), recurrence=2, attention=["criss_cross", "none", "efficient", "none"]
    )
    applications = record_attention(model, IMAGE)
    assert [each.stage for each in applications] == [0, 0, 0, 0, 2]
    pairs = list(consecutive_crosses(applications))
    assert pairs == [(applications[i], applications[i + 1]) for i in range(3)]

    def dense(one: AttentionApplication) -> Tensor:
        out = torch.zeros(len(one.query), 16, 26, 16, 26, dtype=torch.float64)
        for h in range(16):
            for w in range(26):
                row, column = cross_weights(one, (h, w))
                out[:, h, w, h] += row
                out[:, h, w, :, w] += column
        return out.flatten(1, 2).flatten(2)

    first, second = pairs[1]
    product = dense(second) @ dense(first).mean(dim=0)
    expected = product.view(-1, 16, 26, 16, 26)[:, 9, 20]
    torch.testing.assert_close(composed_weights(first, second, (9, 20)), expected)


@torch.no_grad()
def test_recording_changes_nothing_and_leaves_no_hook() -> None:
    model = model_with()
    before = model(IMAGE).logits
    record_attention(model, IMAGE)
    assert torch.equal(model(IMAGE).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_position_is_the_cell_that_contains_the_pixel() -> None:
    assert position_of((0, 0), (63, 101), (16, 26)) == (0, 0)
    assert position_of((62, 100), (63, 101), (16, 26)) == (15, 25)
    assert position_of((32, 52), (64, 104), (16, 26)) == (8, 13)
    with pytest.raises(IndexError, match="y=64, x=0 is outside the image of 104 x 64"):
        position_of((64, 0), (64, 104), (16, 26))


def test_what_cannot_be_shown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(attention=["criss_cross", "efficient", "none", "none"])
    crossed, efficient = record_attention(model, IMAGE)
    with pytest.raises(ValueError, match="not criss_cross"):
        cross_weights(efficient, (0, 0))
    with pytest.raises(ValueError, match="not efficient"):
        reduced_weights(crossed, (0, 0))
    with pytest.raises(IndexError, match="outside the 8 x 13 grid"):
        reduced_weights(efficient, (8, 0))
    with pytest.raises(ValueError, match="training mode"):
        record_attention(model.train(), IMAGE)
    with pytest.raises(ValueError, match="1, channels"):
        record_attention(model.eval(), IMAGE[0])
    monkeypatch.setattr(attention_weights, "CrissCrossAttention", int)
    with pytest.raises(EngineError, match="stage 1: the weights of CrissCrossAttention cannot be shown"):
        record_attention(model, IMAGE)
