"""Exact criss-cross attention in O(N) memory: a row pass and a column pass of flash attention, merged.

README.md beside this file has the mathematics. Inside, tensors are token-major: (batch, height, width,
heads, head_dim), the memory order of a linear layer's output, in which the sequences of both passes are
views: rows as (batch * height, heads, width, head_dim), columns as (batch, width * heads, height, head_dim).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ccsegformer.ops._autocast import declare_autocast

STRIP_ELEMENTS = 2**22
"""Of a tensor, in a strip: 16 MiB in float32, so large that each thread has much to do."""

AsSequences = Callable[[Tensor], Tensor]
aten = torch.ops.aten


def flash_refusal(query: Tensor) -> str | None:
    """Why the flash backend cannot take these tensors, or None when it can."""
    if query.device.type not in ("cpu", "cuda"):
        return f"it runs on cpu and cuda, not on {query.device.type}"
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, bfloat16 or float16, not in {query.dtype}"
    return None


def flash_criss_cross_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Exact attention of (batch, heads, height, width, head_dim) tensors, as `criss_cross_attention`."""
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    # PyTorch's kernels want one head_dim, on CUDA a multiple of 8; zeros change neither scores nor values.
    common = max(head_dim, value_dim)
    if query.device.type == "cuda":
        common = -(-common // 8) * 8
    if common > head_dim:
        query, key = pad(query, (0, common - head_dim)), pad(key, (0, common - head_dim))
    if common > value_dim:
        value = pad(value, (0, common - value_dim))
    out, _ = _flash_criss_cross(query, key, value, scale)
    return out[..., :value_dim] if common > value_dim else out


@torch.library.custom_op("ccsegformer::flash_criss_cross", mutates_args=())
def _flash_criss_cross(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The output, and the log-sum-exp of every position's scores: float32 (batch, height, width, heads)."""
    query, key, value = tensors = tuple(_token_major(tensor) for tensor in (query, key, value))
    out = torch.empty_like(query)
    lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
    for rows in _strips(query, dim=1):
        out[:, rows], lse[:, rows] = _attend(_as_rows, [tensor[:, rows] for tensor in tensors], scale)
    for columns in _strips(query, dim=2):
        strip = [tensor[:, :, columns] for tensor in tensors]
        row_pass, column_pass = (out[:, :, columns], lse[:, :, columns]), _attend(_as_columns, strip, scale)
        out[:, :, columns], lse[:, :, columns] = _merge(row_pass, column_pass, strip, scale)
    return _head_major(out), lse


def _merge(
    row_pass: tuple[Tensor, Tensor],
    column_pass: tuple[Tensor, Tensor],
    tensors: Sequence[Tensor],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of both passes together, token-major.

    Both hold the position itself, so its term is taken away once. The sum stays >= exp(0): the larger pass
    weighs 1, and where that is the row and the position is all of it, the column holds it too.
    """
    (row_out, row_lse), (column_out, column_lse) = row_pass, column_pass
    query, key, value = tensors
    self_score = _dot(query, key) * scale
    peak = torch.maximum(row_lse, column_lse)
    row_weight, column_weight = (row_lse - peak).exp_(), (column_lse - peak).exp_()
    self_weight = (self_score - peak).exp_()
    total = row_weight + column_weight - self_weight
    out = row_out.float() * (row_weight / total).unsqueeze_(-1)
    out.addcmul_(column_out, (column_weight / total).unsqueeze_(-1))
    out.addcmul_(value, (self_weight / total).unsqueeze_(-1), value=-1)
    return out, total.log_().add_(peak)


@_flash_criss_cross.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, height, width, _ = query.shape
    lse = query.new_empty((batch, height, width, heads), dtype=torch.float32)
    return _like_head_major(query), lse


@torch.library.custom_op("ccsegformer::flash_criss_cross_backward", mutates_args=())
def _flash_criss_cross_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each (batch, heads, height, width, head_dim)."""
    tensors = [*(_token_major(tensor) for tensor in (grad, query, key, value, out)), lse]
    grads = [torch.empty_like(tensors[1]) for _ in range(3)]
    # Given the merged output and log-sum-exp, each pass's backward is its exact share of the whole one.
    for rows in _strips(tensors[1], dim=1):
        shares = _attend_backward(_as_rows, [tensor[:, rows] for tensor in tensors], scale)
        for total, share in zip(grads, shares, strict=True):
            total[:, rows] = share
    for columns in _strips(tensors[1], dim=2):
        strip = [tensor[:, :, columns] for tensor in tensors]
        shares = [share.float() for share in _attend_backward(_as_columns, strip, scale)]
        _take_self_away(shares, strip, scale)
        for total, share in zip(grads, shares, strict=True):
            total[:, :, columns] = share.add_(total[:, :, columns])
    return tuple(_head_major(each) for each in grads)  # type: ignore[return-value]


def _take_self_away(shares: Sequence[Tensor], tensors: Sequence[Tensor], scale: float) -> None:
    """The position itself is in both passes: subtract its gradients once, in closed form, in place."""
    grad, query, key, value, out, lse = tensors
    self_weight = (_dot(query, key).mul_(scale) - lse).exp_()
    self_grad = self_weight * (_dot(grad, value) - _dot(grad, out)) * scale
    for share, tensor, weight in zip(
        shares, (key, query, grad), (self_grad, self_grad, self_weight), strict=True
    ):
        share.addcmul_(tensor, weight.unsqueeze(-1), value=-1)


@_flash_criss_cross_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _like_head_major(query), _like_head_major(key), _like_head_major(value)


def _save_for_backward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, key, value, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    return *_flash_criss_cross_backward(grad, *ctx.saved_tensors, ctx.scale), None


_flash_criss_cross.register_autograd(_backward, setup_context=_save_for_backward)
declare_autocast("flash_criss_cross")


def _token_major(tensor: Tensor) -> Tensor:
    """(batch, heads, height, width, head_dim) as contiguous (batch, height, width, heads, head_dim)."""
    return tensor.permute(0, 2, 3, 1, 4).contiguous()


def _head_major(tensor: Tensor) -> Tensor:
    """The view that undoes `_token_major`."""
    return tensor.permute(0, 3, 1, 2, 4)


def _like_head_major(tensor: Tensor) -> Tensor:
    batch, heads, height, width, head_dim = tensor.shape
    return _head_major(tensor.new_empty((batch, height, width, heads, head_dim)))


def _strips(tensor: Tensor, dim: int) -> Iterator[slice]:
    """Cut dimension `dim`: on CPU, so that what a pass makes of a large map is never whole."""
    length = tensor.shape[dim]
    step = max(STRIP_ELEMENTS * length // tensor.numel(), 1) if tensor.device.type == "cpu" else length
    for first in range(0, length, step):
        yield slice(first, min(first + step, length))


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Dot product over the last dimension, in float32."""
    return (left.float() * right).sum(dim=-1)


def _as_rows(tensor: Tensor) -> Tensor:
    """Token-major (B, H, W, heads, ...) as sequences along the width: (B * H, heads, W, ...), a view."""
    return tensor.flatten(0, 1).transpose(1, 2)


def _as_columns(tensor: Tensor) -> Tensor:
    """Token-major (B, H, W, heads, ...) as sequences along the height: (B, W * heads, H, ...), a view."""
    return tensor.flatten(2, 3).transpose(1, 2)


def _attend(as_sequences: AsSequences, tensors: Sequence[Tensor], scale: float) -> tuple[Tensor, Tensor]:
    """The token-major output of one pass over query, key and value, and its log-sum-exp (B, H, W, heads)."""
    query, key, value = map(as_sequences, tensors)
    out, lse = _attention(query, key, value, scale)
    shape = tensors[0].shape
    return out.transpose(1, 2).reshape(shape), lse.transpose(1, 2).reshape(shape[:-1])


def _attend_backward(as_sequences: AsSequences, tensors: Sequence[Tensor], scale: float) -> list[Tensor]:
    """One pass's gradients of query, key and value, given grad, query, key, value, out and log-sum-exp."""
    grad, query, key, value, out, lse = map(as_sequences, tensors)
    grads = _attention_backward(grad, query, key, value, out, lse, scale)
    return [each.transpose(1, 2).reshape(tensors[0].shape) for each in grads]


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of (batch, heads, length, head_dim) sequences: the output and its float32 log-sum-exp."""
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
    return _efficient_attention(query, key, value, scale)


def _attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value of `_attention`, for any output and log-sum-exp that it is given."""
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, False, scale=scale
        )
    return _efficient_attention_backward(grad, query, key, value, out, lse, scale)


def _efficient_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`_attention` on CUDA."""
    out, lse, _, _ = aten._scaled_dot_product_efficient_attention(query, key, value, None, True, scale=scale)
    return out, lse[..., : query.shape[2]]  # the kernel pads the length to a multiple of 32


def _efficient_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`_attention_backward` on CUDA."""
    # The kernel takes the log-sum-exp as it made it: dense along the length, and padded with infinity.
    lse = pad(lse.contiguous(), (0, -lse.shape[-1] % 32), value=math.inf)
    no_dropout = torch.zeros((), dtype=torch.int64, device=query.device)
    return aten._scaled_dot_product_efficient_attention_backward(
        grad,
        query,
        key,
        value,
        None,
        out,
        lse,
        no_dropout,
        no_dropout,
        0.0,
        [True, True, True, False],
        scale=scale,
    )[:3]
