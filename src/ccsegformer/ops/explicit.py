"""Exact criss-cross attention in plain PyTorch operators, for exported files.

A row pass and a column pass are merged by their log-sum-exps, as README.md in this folder explains. Compilers
such as OpenVINO's fuse `bmm(softmax(bmm(q, k^T)), v)` of rank-3 tensors into one kernel, which neither stores
scores nor returns the log-sum-exp. An extra value channel recovers the latter: it is 1 at a few keys M, the
landmarks, and 0 at the others. Its output is the landmarks' share of the softmax,
P = sum_M exp(s) / sum exp(s), and therefore

    lse = log sum_M exp(s) - log P.

This is exact and costs 64 more scores for each position. P underflows in float32 where every landmark's score
is about 70 or more below the largest one; the output there is NaN, never a wrong number.
"""

import torch
from torch import Tensor

LANDMARKS = 64
"""Landmarks in a line, evenly spaced. In a shorter line some repeat, and P counts them as often.

Networks that were trained long need that many: a last stage was seen to score keys 77 above all of 16 others.
"""


def explicit_criss_cross_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Decompose the operator `ccsegformer::flash_criss_cross`, for fixed or dynamic sizes.

    Args:
        query, key: Tensors (batch, heads, height, width, head_dim), float32 or float64.
        value: Tensor (batch, heads, height, width, value_dim).
        scale: Factor of the scores.

    Returns:
        The output as from `criss_cross_attention`, and the log-sum-exp (batch, height, width, heads).
    """
    query = query * scale
    row_out, row_lse = _attend_rows(query, key, value)
    columns = _attend_rows(*(tensor.transpose(2, 3) for tensor in (query, key, value)))
    column_out, column_lse = (tensor.transpose(2, 3) for tensor in columns)
    # Both passes count the position itself, so subtract its term once, as in flash.py.
    self_score = (query * key).sum(dim=-1, keepdim=True)
    peak = torch.maximum(row_lse, column_lse)
    row_weight, column_weight = (row_lse - peak).exp(), (column_lse - peak).exp()
    self_weight = (self_score - peak).exp()
    total = row_weight + column_weight - self_weight
    out = (row_weight * row_out + column_weight * column_out - self_weight * value) / total
    return out, (peak + total.log()).squeeze(-1).permute(0, 2, 3, 1)


def _attend_rows(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attend along the width. Return (batch, heads, height, width, value_dim) and log-sum-exps (..., 1)."""
    batch, heads, height, width, _ = query.shape
    sequences = [
        tensor.transpose(1, 2).reshape(batch * height * heads, width, tensor.shape[-1])
        for tensor in (query, key, value)
    ]
    out, lse = (
        tensor.reshape(batch, height, heads, width, tensor.shape[-1]).transpose(1, 2)
        for tensor in _attend_with_lse(*sequences)
    )
    return out, lse


def _attend_with_lse(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attend in (sequences, length, ...) tensors. Also return the log-sum-exp (sequences, length, 1)."""
    length = key.shape[1]
    landmarks = torch.arange(LANDMARKS, device=key.device) * length // LANDMARKS
    is_landmark = torch.arange(length, device=key.device).unsqueeze(1) == landmarks
    counts = is_landmark.to(value.dtype).sum(dim=1, keepdim=True)
    value = torch.cat([value, counts.expand(value.shape[0], length, 1)], dim=-1)
    out = torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1), value)
    out, share = out[..., :-1], out[..., -1:]
    # Not torch.logsumexp: some runtimes do not subtract the largest score in it, and overflow.
    scores = torch.bmm(query, key.index_select(1, landmarks).transpose(1, 2))
    peak = scores.amax(dim=-1, keepdim=True)
    # A smaller share has lost digits to underflow. Replace it by 0: its log makes the merge inf - inf.
    number = torch.finfo(share.dtype)
    share = torch.where(share > LANDMARKS * number.tiny / number.eps, share, 0.0)
    return out, peak + (scores - peak).exp().sum(dim=-1, keepdim=True).log() - share.log()
