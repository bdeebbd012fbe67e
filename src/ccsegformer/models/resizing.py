"""Bilinear resizing, some of the rows at a time: the linear algebra of `interpolate`."""

import torch
from torch import Tensor


def vertical_weights(source: int, target: int, first: int, last: int, like: Tensor) -> tuple[slice, Tensor]:
    """How the rows from `first` to `last` of an image resized from `source` rows to `target` come about.

    Half-pixel centres without antialiasing, as PyTorch's `interpolate(mode="bilinear")`.

    Args:
        source, target: rows before and after.
        first, last: of the rows after, the last exclusive.
        like: whose dtype and device the weights take.

    Returns:
        The source rows that are needed, and their weights (last - first, source rows needed).
    """
    rows = torch.arange(first, last, dtype=torch.float64)
    position = ((rows + 0.5) * (source / target) - 0.5).clamp_(min=0)
    above = position.long().clamp_(max=source - 1)
    below = (above + 1).clamp_(max=source - 1)
    top, end = int(above[0]), int(below[-1]) + 1
    weights = rows.new_zeros(last - first, end - top)
    part = (position - above)[:, None]
    weights.scatter_add_(1, above[:, None] - top, 1 - part).scatter_add_(1, below[:, None] - top, part)
    return slice(top, end), weights.to(like)
