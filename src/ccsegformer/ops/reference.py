"""The textbook formula of criss-cross attention, against which every backend is tested."""

import torch
from torch import Tensor


def reference_criss_cross_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Compute criss-cross attention by its definition, in O(N (H + W)) memory.

    Position (h, w) attends to row h and column w with one softmax over H + W - 1 scores: the position's
    score is kept in the row and masked in the column. Equations 1 and 2 of CCNet (Huang et al.,
    https://arxiv.org/abs/1811.11721), with several heads and a scale.

    Args:
        query, key: Tensors (batch, heads, height, width, head_dim) of any floating-point dtype.
        value: Tensor (batch, heads, height, width, value_dim).
        scale: Factor of the scores.

    Returns:
        Tensor (batch, heads, height, width, value_dim) in the dtype of `value`.
    """
    width = query.shape[3]
    weights = _cross_scores(query, key, scale).softmax(dim=-1)
    return torch.einsum("bnhwx,bnhxd->bnhwd", weights[..., :width], value) + torch.einsum(
        "bnhwy,bnywd->bnhwd", weights[..., width:], value
    )


def _cross_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return (batch, heads, height, width, width + height): the row's scores, then the column's."""
    row = torch.einsum("bnhwd,bnhxd->bnhwx", query, key) * scale
    column = torch.einsum("bnhwd,bnywd->bnhwy", query, key) * scale
    itself = torch.eye(query.shape[2], dtype=torch.bool, device=query.device)[:, None, :]
    return torch.cat([row, column.masked_fill(itself, float("-inf"))], dim=-1)


def criss_cross_weights(
    query: Tensor, key: Tensor, position: tuple[int, int], *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the attention weights of one position, for visualisation.

    Args:
        query, key: Tensors (batch, heads, height, width, head_dim).
        position: Row and column (h, w) of the query, 0 <= h < height and 0 <= w < width.
        scale: Factor of the scores; `head_dim ** -0.5` by default.

    Returns:
        The weights of the row (batch, heads, width) and of the column (batch, heads, height). Together they
        sum to 1. The position's own weight is in the row; its entry in the column is 0.

    Raises:
        IndexError: The position is outside the grid.
    """
    height, width, head_dim = query.shape[2:]
    h, w = position
    if not (0 <= h < height and 0 <= w < width):
        raise IndexError(f"position {position} is outside the {height} x {width} grid")
    centre = query[:, :, h, w] * (head_dim**-0.5 if scale is None else scale)
    row = torch.einsum("bnd,bnxd->bnx", centre, key[:, :, h])
    column = torch.einsum("bnd,bnyd->bny", centre, key[:, :, :, w])
    itself = torch.arange(height, device=query.device) == h
    weights = torch.cat([row, column.masked_fill(itself, float("-inf"))], dim=-1).softmax(dim=-1)
    return weights[..., :width], weights[..., width:]
