"""What single attentions become: exact where they can be, and closer with every stage."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ccsegformer.conversion import fold as fold_module
from ccsegformer.conversion import ridge
from ccsegformer.conversion.fold import _copy_weights, _positions_and_patches, fold
from ccsegformer.conversion.layerwise import match_layers
from ccsegformer.conversion.moments import Moments
from ccsegformer.conversion.ridge import attention_errors, fit_ridge, keep_better
from ccsegformer.conversion.student import Block, Passed, attention_blocks, build_student, watch
from ccsegformer.errors import CheckpointError
from ccsegformer.models.attention.criss_cross import CrissCrossAttention
from tests.models.test_modeling import pixels, shake, tiny

IMAGES = [pixels(2, 64, 96), 2 * pixels(2, 96, 64).flip(0)]
ROWS = [pixels(4, 4, 256)]  # one row of positions in each stage: a cross then sees all of them


def row_teacher() -> nn.Module:
    """Return a model without sequence reduction, which on one row is criss-cross attention."""
    model = tiny(attention="efficient", sr_ratios=(1, 1, 1, 1)).eval()
    shake(model)
    return model


def test_a_student_has_the_teachers_weights_and_its_own_attention(teacher: nn.Module) -> None:
    student = build_student(teacher, ["criss_cross", "efficient", "none", "efficient"])
    assert student.config.stage_attention == ("criss_cross", "efficient", "none", "efficient")
    assert student.config.id2label == teacher.config.id2label and not student.training
    theirs = teacher.state_dict()
    for name, weight in student.state_dict().items():
        expected = torch.zeros_like(weight) if "lepe" in name else theirs[name]
        assert torch.equal(weight, expected), name
    assert [block.name for block in attention_blocks(teacher, student)] == ["stage 1, block 1"]


@pytest.mark.parametrize(
    ("before", "attention", "problem"),
    [
        ({}, "efficient", "nothing to convert"),
        ({}, ["criss_cross"] * 3, "3 names for the 4 stages"),
        ({}, ["criss_cross", "ccnet", "none", "none"], "stage 2 cannot become ccnet"),
        ({"attention": "criss_cross"}, "criss_cross", "nothing to convert"),
        ({"attention": "criss_cross"}, "efficient", "criss_cross attention in stage 1 cannot become"),
        ({"attention": ["criss_cross"] + ["efficient"] * 3, "recurrence": 2}, "criss_cross", "recurrence 2"),
    ],
)
def test_what_cannot_be_converted_is_said(before: dict, attention: str | list[str], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        build_student(tiny(**{"attention": "efficient", **before}), attention)


def test_the_sequence_reduction_is_folded_where_it_is_linear(
    teacher: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constant patches through a reduction whose layer norm is none are a linear map, which must be found."""
    monkeypatch.setattr(fold_module, "FOLD_PENALTY", 1e-12)
    attention = teacher.segformer.stages[1].blocks[0].attention
    reduction = attention.sequence_reduction
    reduction.layer_norm = nn.Identity()
    patches = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    tokens = patches.repeat_interleave(4, 2).repeat_interleave(4, 3).flatten(2).transpose(1, 2)
    block = Block("", attention, CrissCrossAttention(16, 2, 1, lepe=True))
    with torch.no_grad():
        rows = _positions_and_patches(block, Passed(tokens, 16, 16, tokens))
        moments = Moments(rows.shape[1], rows.device)
        moments.add(rows)
        _copy_weights(block, moments)
        keys = block.student.k_proj(tokens).unflatten(1, (16, 16))[:, ::4, ::4].flatten(1, 2)
        expected = attention.k_proj(reduction(tokens, 16, 16))
    torch.testing.assert_close(keys, expected, rtol=1e-3, atol=1e-4)


def test_a_row_without_reduction_is_converted_exactly() -> None:
    teacher = row_teacher()
    student = build_student(teacher, "criss_cross")
    fold(teacher, student, ROWS)
    torch.testing.assert_close(student(ROWS[0]).logits, teacher(ROWS[0]).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("memory", [2**30, 1])
def test_ridge_finds_values_and_output_that_fit(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(ridge, "PENALTY", 1e-9)
    monkeypatch.setattr(ridge, "GRAM_BYTES", memory)  # one group, or one for each block
    teacher = row_teacher()
    student = build_student(teacher, "criss_cross")
    fold(teacher, student, ROWS)
    for block in attention_blocks(teacher, student):
        shake(block.student.v_proj, 1.0)
        shake(block.student.o_proj, 1.0)
    before = attention_errors(teacher, student, ROWS)
    fit_ridge(teacher, student, ROWS)
    after = attention_errors(teacher, student, ROWS)
    assert len(after) == 4 and min(before.values()) > 0.1
    assert max(list(after.values())[:3]) < 1e-3  # the last stage has too few positions to be determined


def test_lepe_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = CrissCrossAttention(8, 2, 1, lepe=True)
    shake(wanted, 0.5)
    nn.init.zeros_(wanted.lepe.bias)
    passed = Passed(torch.randn(8, 12 * 12, 8, generator=generator), 12, 12, torch.empty(0))
    output = wanted(*passed[:3])[0].detach()
    found = copy.deepcopy(wanted)
    nn.init.zeros_(found.lepe.weight)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ridge, "PENALTY", 1e-9)
        rows = torch.cat([ridge._attended_values(found, passed), output.flatten(0, 1)], dim=1)
        moments = Moments(rows.shape[1], rows.device)
        moments.add(rows)
        ridge._set_lepe_and_output(found, moments)
    torch.testing.assert_close(found.lepe.weight, wanted.lepe.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found(*passed[:3])[0], output, rtol=1e-3, atol=1e-3)


def test_ridge_brings_attention_closer(teacher: nn.Module) -> None:
    student = build_student(teacher, "criss_cross")
    fold(teacher, student, IMAGES)
    folded = mean_error(teacher, student)
    fitted = copy.deepcopy(student)
    fit_ridge(teacher, fitted, IMAGES)
    assert keep_better(teacher, student, fitted, IMAGES)
    ridged = mean_error(teacher, student)
    assert ridged < 0.9 * folded


@pytest.mark.parametrize("own_inputs", [False, True])
def test_layers_are_matched_on_either_ones_inputs(teacher: nn.Module, own_inputs: bool) -> None:
    student = build_student(teacher, "criss_cross")
    errors: list[float] = []
    match_layers(
        teacher,
        student,
        IMAGES[:1] * 8,
        steps=8,
        learning_rate=1e-2,
        own_inputs=own_inputs,
        on_step=lambda _, error: errors.append(error),
    )
    assert len(errors) == 8 and errors[-1] < 0.8 * errors[0]


def test_a_fit_that_is_worse_is_not_taken(teacher: nn.Module) -> None:
    student = build_student(teacher, "criss_cross")
    fold(teacher, student, IMAGES)
    worse = copy.deepcopy(student)
    shake(attention_blocks(teacher, worse)[1].student.o_proj, 3.0)
    before = copy.deepcopy(student.state_dict())
    assert keep_better(teacher, student, worse, IMAGES) == []
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())


def test_errors_are_shares_of_the_variance(teacher: nn.Module) -> None:
    student = build_student(teacher, ["criss_cross", "efficient", "efficient", "efficient"])
    [block] = attention_blocks(teacher, student)
    output = torch.cat([outputs_of(teacher, block, images) for images in IMAGES])
    nn.init.zeros_(block.student.o_proj.weight)
    with torch.no_grad():
        block.student.o_proj.bias.copy_(output.mean(dim=0))  # explains nothing but the mean
    assert attention_errors(teacher, student, IMAGES)[block.name] == pytest.approx(1, abs=0.05)


def mean_error(teacher: nn.Module, student: nn.Module) -> float:
    errors = attention_errors(teacher, student, IMAGES)
    return sum(errors.values()) / len(errors)


def outputs_of(teacher: nn.Module, block: Block, images: Tensor) -> Tensor:
    return watch(teacher, [block.teacher], images)[0].output.flatten(0, 1)
