"""The first start of the new attention: the old one's weights, with the sequence reduction folded in.

Efficient attention computes its keys and values from a reduced image, LN(conv(x)), with one position for each
patch of R x R (Xie et al., SegFormer, https://arxiv.org/abs/2105.15203). Criss-cross attention computes them
from every position x by itself. The linear map of x that comes closest to its patch's reduced position,
measured on images, takes the place of convolution and layer norm. Adding up the convolution's taps instead,
which is right where an image is constant over a patch, exaggerates elsewhere: a patch varies less than its
positions.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ccsegformer.conversion.moments import Moments, solve_ridge
from ccsegformer.conversion.student import Block, Passed, attention_blocks, watch
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation

FOLD_PENALTY = 1e-2


@torch.no_grad()
def fold(
    teacher: CrissCrossSegformerForSemanticSegmentation,
    student: CrissCrossSegformerForSemanticSegmentation,
    images: Iterable[Tensor],
) -> None:
    """Give the student's criss-cross attention the teacher's weights, and fold in the sequence reduction.

    The queries' and the output's weights are copied; LePE becomes 0.

    Args:
        teacher, student: Models on the same device, see `build_student`.
        images: Normalised pixels (batch, bands, H, W) to measure on.
    """
    blocks = attention_blocks(teacher, student)
    measured: dict[str, Moments] = {}
    for pixels in images:
        seen = watch(teacher, [block.teacher for block in blocks], pixels.to(teacher.device))
        for block, passed in zip(blocks, seen, strict=True):
            if block.teacher.sequence_reduction_ratio > 1:
                rows = _positions_and_patches(block, passed)
                measured.setdefault(block.name, Moments(rows.shape[1], rows.device)).add(rows)
    for block in blocks:
        _copy_weights(block, measured.get(block.name))


def _positions_and_patches(block: Block, passed: Passed) -> Tensor:
    """Return each position beside its patch's reduced position: (positions, 2 C)."""
    ratio = block.teacher.sequence_reduction_ratio
    rows, columns = passed.height // ratio, passed.width // ratio
    reduced = block.teacher.sequence_reduction(passed.tokens, passed.height, passed.width)
    spread = reduced.unflatten(1, (rows, columns)).repeat_interleave(ratio, 1).repeat_interleave(ratio, 2)
    grid = passed.tokens.unflatten(1, (passed.height, passed.width))
    return torch.cat([grid[:, : rows * ratio, : columns * ratio], spread], dim=3).flatten(0, 2)


def _copy_weights(block: Block, measured: Moments | None) -> None:
    """Copy the projections; those of keys and values follow the regression, if there is one."""
    old, new = block.teacher, block.student
    new.q_proj.load_state_dict(old.q_proj.state_dict())
    new.o_proj.load_state_dict(old.o_proj.state_dict())
    for before, after in ((old.k_proj, new.k_proj), (old.v_proj, new.v_proj)):
        after.load_state_dict(before.state_dict())
        if measured is not None:
            matrix, shift = _regression(measured)
            after.weight.copy_(before.weight.double() @ matrix)
            after.bias.copy_(before.weight.double() @ shift + before.bias)
    if new.lepe is not None:
        for weight in new.lepe.parameters():
            weight.zero_()


def _regression(measured: Moments) -> tuple[Tensor, Tensor]:
    """Return the matrix (C, C) and the shift (C,) of the map from a position to its patch."""
    covariance, mean = measured.covariance(), measured.mean
    own, patch = mean.chunk(2)
    width = len(own)
    matrix = solve_ridge(covariance[:width, :width], covariance[:width, width:], FOLD_PENALTY).T
    return matrix, patch - matrix @ own
