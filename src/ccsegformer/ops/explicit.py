"""Exact criss-cross attention in PyTorch's own operators: the form that exporters write down.

A row pass and a column pass, merged as README.md beside this file has it; that takes each one's log-sum-exp.
Compilers such as OpenVINO's turn `bmm(softmax(bmm(q, k^T)), v)` of rank-3 tensors, with nothing in between,
into one kernel that stores no scores, and keep the log-sum-exp inside. Here the values carry it out. Let M be
a few keys, the landmarks. A column beside the values that is 1 at these and 0 elsewhere comes out as their
share of the softmax, P = sum_M exp(s) / sum exp(s), and so

    lse = log sum_M exp(s) - log P,

exactly, for 16 scores more for each position. Where every landmark lies about 70 or more below the largest
score, P underflows in float32; the output is NaN there, never wrong.
"""

import torch
from torch import Tensor

LANDMARKS = 16
"""In a line. Spread evenly; those of a shorter line repeat, and count as often in P."""


def explicit_criss_cross_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """What the operator `ccsegformer::flash_criss_cross` gives: its decomposition, for sizes known or not.

    Args:
        query, key: (batch, heads, height, width, head_dim), float32 or float64.
        value: (batch, heads, height, width, value_dim).
        scale: factor of the scores.

    Returns:
        The output, as of `criss_cross_attention`, and the log-sum-exp (batch, height, width, heads).
    """
    query = query * scale
    row_out, row_lse = _attend_rows(query, key, value)
    columns = _attend_rows(*(tensor.transpose(2, 3) for tensor in (query, key, value)))
    column_out, column_lse = (tensor.transpose(2, 3) for tensor in columns)
    # Both passes hold the position itself, so its term is taken away once, as in flash.py.
    self_score = (query * key).sum(dim=-1, keepdim=True)
    peak = torch.maximum(row_lse, column_lse)
    row_weight, column_weight = (row_lse - peak).exp(), (column_lse - peak).exp()
    self_weight = (self_score - peak).exp()
    total = row_weight + column_weight - self_weight
    out = (row_weight * row_out + column_weight * column_out - self_weight * value) / total
    return out, (peak + total.log()).squeeze(-1).permute(0, 2, 3, 1)


def _attend_rows(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention along the width: (batch, heads, height, width, value_dim), and (..., 1) of log-sum-exps."""
    batch, heads, height, width, _ = query.shape
    sequences = [
        tensor.transpose(1, 2).reshape(batch * height * heads, width, tensor.shape[-1])
        for tensor in (query, key, value)
    ]
    out, lse = (
        tensor.reshape(batch, height, heads, width, tensor.shape[-1]).transpose(1, 2)
        for tensor in _attend(*sequences)
    )
    return out, lse


def _attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of (sequences, length, ...) tensors, and its log-sum-exp (sequences, length, 1)."""
    length = key.shape[1]
    landmarks = torch.arange(LANDMARKS, device=key.device) * length // LANDMARKS
    is_landmark = torch.arange(length, device=key.device).unsqueeze(1) == landmarks
    counts = is_landmark.to(value.dtype).sum(dim=1, keepdim=True)
    value = torch.cat([value, counts.expand(value.shape[0], length, 1)], dim=-1)
    out = torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1), value)
    out, share = out[..., :-1], out[..., -1:]
    # Not logsumexp: some runtimes compute that without taking the largest score away, and overflow.
    scores = torch.bmm(query, key.index_select(1, landmarks).transpose(1, 2))
    peak = scores.amax(dim=-1, keepdim=True)
    # Below this, terms that underflowed are missed in the last digit; log(0) makes the merge inf - inf.
    number = torch.finfo(share.dtype)
    share = torch.where(share > LANDMARKS * number.tiny / number.eps, share, 0.0)
    return out, peak + (scores - peak).exp().sum(dim=-1, keepdim=True).log() - share.log()
