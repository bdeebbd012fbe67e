"""The definition of criss-cross attention, short and never optimised: every backend is tested against it."""

import torch
from torch import Tensor


def reference_criss_cross_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Criss-cross attention by its textbook formula, in O(N (H + W)) memory.

    Position (h, w) attends to row h and column w under one softmax over H + W - 1 scores: the column's
    own copy of the position is masked, the row's is kept. Equations 1 and 2 of Huang et al., CCNet
    (https://arxiv.org/abs/1811.11721), with several heads and a scale.

    Args:
        query, key: (batch, heads, height, width, head_dim), any floating dtype.
        value: (batch, heads, height, width, value_dim).
        scale: factor of the scores.

    Returns:
        (batch, heads, height, width, value_dim), in the dtype of `value`.
    """
    width = query.shape[3]
    weights = _cross_scores(query, key, scale).softmax(dim=-1)
    return torch.einsum("bnhwx,bnhxd->bnhwd", weights[..., :width], value) + torch.einsum(
        "bnhwy,bnywd->bnhwd", weights[..., width:], value
    )


def _cross_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(batch, heads, height, width, width + height): the row's scores, then the column's."""
    row = torch.einsum("bnhwd,bnhxd->bnhwx", query, key) * scale
    column = torch.einsum("bnhwd,bnywd->bnhwy", query, key) * scale
    itself = torch.eye(query.shape[2], dtype=torch.bool, device=query.device)[:, None, :]
    return torch.cat([row, column.masked_fill(itself, float("-inf"))], dim=-1)


def criss_cross_weights(
    query: Tensor, key: Tensor, position: tuple[int, int], *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """The attention weights of one position's cross, for people who look.

    Args:
        query, key: (batch, heads, height, width, head_dim).
        position: (h, w) of the query, 0 <= h < height and 0 <= w < width.
        scale: factor of the scores; `head_dim ** -0.5` when None.

    Returns:
        The row's weights (batch, heads, width) and the column's (batch, heads, height). Together they
        sum to 1; the position's own weight stands in the row, and its entry in the column is 0.

    Raises:
        IndexError: the position lies outside the grid.
    """
    height, width, head_dim = query.shape[2:]
    h, w = position
    if not (0 <= h < height and 0 <= w < width):
        raise IndexError(f"position {position} lies outside the {height} x {width} grid")
    centre = query[:, :, h, w] * (head_dim**-0.5 if scale is None else scale)
    row = torch.einsum("bnd,bnxd->bnx", centre, key[:, :, h])
    column = torch.einsum("bnd,bnyd->bny", centre, key[:, :, :, w])
    itself = torch.arange(height, device=query.device) == h
    weights = torch.cat([row, column.masked_fill(itself, float("-inf"))], dim=-1).softmax(dim=-1)
    return weights[..., :width], weights[..., width:]
