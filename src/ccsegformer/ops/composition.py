"""Where a position looks after two applications of criss-cross attention, without a matrix of N x N."""

import torch
from torch import Tensor

from ccsegformer.ops.reference import criss_cross_weights


def composed_criss_cross_weights(
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    position: tuple[int, int],
    *,
    scale: float | None = None,
) -> Tensor:
    """Return one position's row of the product of two criss-cross attention matrices.

    With the N x N matrices A of the first application, averaged over its heads, and B of each head of the
    second, this is `(B A)[position]`: the position's weights on every position of the image. It composes
    attention weights alone. Values, projections, residuals and Mix-FFNs between the two are left out, and the
    first's heads are averaged because an output projection mixes them before the second.

    Only the lines through the position take part, so time and memory are O(heads (H + W)^2 + heads H W).

    Args:
        first: Query and key of the first application, each (batch, heads, height, width, head_dim).
        second: Query and key of the second, on the same grid; its heads may differ in number.
        position: Row and column (h, w), 0 <= h < height and 0 <= w < width.
        scale: Factor of the scores in both; `head_dim ** -0.5` by default.

    Returns:
        Weights (batch, heads of the second, height, width), which sum to 1 for each head.

    Raises:
        IndexError: The position is outside the grid.
    """
    h, w = position
    row, column = criss_cross_weights(*second, position, scale=scale)
    query, key = first
    # Each position (h, x) of the row attends to the row itself and, through its column, to all (y, x).
    along_row, across_row = _line_weights(query[:, :, h], key[:, :, h], key.transpose(2, 3), h, scale)
    # For the column's positions (y, w) the roles change: these are columns of the transposed grid.
    along_column, across_column = _line_weights(
        query[:, :, :, w], key[:, :, :, w], key, w, scale, own_in_line=False
    )
    composed = row[..., None, :] * across_row.mT[:, None] + column[..., None] * across_column[:, None]
    composed[:, :, h] += row @ along_row
    composed[:, :, :, w] += column @ along_column
    return composed


def _line_weights(
    query: Tensor, along: Tensor, across: Tensor, place: int, scale: float | None, *, own_in_line: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the weights of all positions of one line, averaged over heads.

    Args:
        query, along: Queries and keys of the line (batch, heads, length, head_dim).
        across: Keys of the lines that cross it (batch, heads, length, other, head_dim).
        place: Index of the line among those of its direction.
        scale: Factor of the scores.
        own_in_line: Whether a position's own weight belongs to this line or to the one across.

    Returns:
        Weights along the line (batch, length, length) and across it (batch, length, other).
    """
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    own = torch.einsum("bnid,bnjd->bnij", query, along)
    other = torch.einsum("bnid,bniyd->bniy", query, across)
    if own_in_line:
        other[..., place] = float("-inf")
    else:
        own.diagonal(dim1=-2, dim2=-1).fill_(float("-inf"))
    weights = torch.cat([own, other], dim=-1).softmax(dim=-1).mean(dim=1)
    return weights[..., : own.shape[-1]], weights[..., own.shape[-1] :]
