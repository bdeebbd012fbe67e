"""Bilinear resizing of part of a line, as weights for a matrix product."""

import torch
from torch import Tensor


def line_weights(source: int, target: int, first: int, last: int, like: Tensor) -> tuple[slice, Tensor]:
    """Return the weights that resize a line bilinearly, for part of the resized line.

    Half-pixel centres without antialiasing, as in PyTorch's `interpolate(mode="bilinear")`.

    Args:
        source, target: Length of the line before and after resizing.
        first, last: Range of positions in the resized line; `last` is exclusive.
        like: Tensor with the dtype and device of the result.

    Returns:
        The slice of source positions that are needed, and their weights (last - first, slice length).
    """
    positions = torch.arange(first, last, dtype=torch.float64)
    place = ((positions + 0.5) * (source / target) - 0.5).clamp_(min=0)
    before = place.long().clamp_(max=source - 1)
    after = (before + 1).clamp_(max=source - 1)
    start, end = int(before[0]), int(after[-1]) + 1
    weights = positions.new_zeros(last - first, end - start)
    part = (place - before)[:, None]
    weights.scatter_add_(1, before[:, None] - start, 1 - part).scatter_add_(1, after[:, None] - start, part)
    return slice(start, end), weights.to(like)
