"""Bilinear resizing of a part of a line: the linear algebra of `interpolate`."""

import torch
from torch import Tensor


def line_weights(source: int, target: int, first: int, last: int, like: Tensor) -> tuple[slice, Tensor]:
    """How positions `first` to `last` of a line resized from `source` to `target` positions come about.

    Half-pixel centres without antialiasing, as PyTorch's `interpolate(mode="bilinear")`.

    Args:
        source, target: length of the line before and after.
        first, last: of the positions after, the last exclusive.
        like: whose dtype and device the weights take.

    Returns:
        The positions before that are needed, and their weights (last - first, positions needed).
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
