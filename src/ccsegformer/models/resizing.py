"""Bilinear resizing of part of a line: half-pixel centres, no antialiasing, as PyTorch's `interpolate`."""

from typing import NamedTuple

import torch
from torch import Tensor


class Line(NamedTuple):
    """Where each position of a resized line lies between two positions of the source line.

    Attributes:
        first, second: Source positions before and after it, int64.
        weight: Weight of the second.
    """

    first: Tensor
    second: Tensor
    weight: Tensor


def place_line(source: int, target: int, dtype: torch.dtype = torch.float32) -> Line:
    """Place the positions of a line that is resized from `source` to `target` positions.

    Places are computed in `dtype`; PyTorch computes them in that of the values.
    """
    scale = torch.tensor(source, dtype=dtype) / target
    centers = ((torch.arange(target, dtype=dtype) + 0.5) * scale - 0.5).clamp(min=0)
    first = centers.long().clamp(max=source - 1)
    return Line(first, (first + 1).clamp(max=source - 1), centers - first)


def line_weights(source: int, target: int, first: int, last: int, like: Tensor) -> tuple[slice, Tensor]:
    """Return the weights that resize a line, for part of the resized line, as a matrix.

    Args:
        source, target: Length of the line before and after resizing.
        first, last: Range of positions in the resized line; `last` is exclusive.
        like: Tensor with the dtype and device of the result.

    Returns:
        The slice of source positions that are needed, and their weights (last - first, slice length).
    """
    before, after, weight = (each[first:last, None] for each in place_line(source, target, torch.float64))
    start, end = int(before[0]), int(after[-1]) + 1
    weights = weight.new_zeros(last - first, end - start)
    weights.scatter_add_(1, before - start, 1 - weight).scatter_add_(1, after - start, weight)
    return slice(start, end), weights.to(like)
