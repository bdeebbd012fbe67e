"""Exact criss-cross attention in O(N) memory: flash attention along rows and along columns, merged.

README.md in this folder derives the merge. Internally, tensors are token-major: (batch, height, width, heads,
head_dim), the memory order of a linear layer's output. In this order the sequences of both passes are views:
rows as (batch * height, heads, width, head_dim), columns as (batch, width * heads, height, head_dim).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ccsegformer.ops._autocast import declare_autocast

STRIP_ELEMENTS = 2**22
"""Elements of a tensor processed at a time on a CPU: 16 MiB in float32, enough work for every thread."""

AsSequences = Callable[[Tensor], Tensor]
aten = torch.ops.aten


def flash_refusal(query: Tensor) -> str | None:
    """Return why the flash backend does not support these tensors, or None if it does."""
    if query.device.type not in ("cpu", "cuda"):
        return f"it runs on cpu and cuda, not on {query.device.type}"
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, bfloat16 or float16, not in {query.dtype}"
    return None


def flash_criss_cross_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend in (batch, heads, height, width, head_dim) tensors, as `criss_cross_attention` does."""
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    # PyTorch's kernels need one head_dim for all, on CUDA a multiple of 8. Padding with 0 changes nothing.
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
    """Return the output and the float32 log-sum-exp of each position, (batch, height, width, heads)."""
    query, key, value = tensors = tuple(_token_major(tensor) for tensor in (query, key, value))
    out = torch.empty_like(query)
    lse = query.new_empty(query.shape[:-1], dtype=torch.float32)
    for rows in _cut_strips(query, dim=1):
        out[:, rows], lse[:, rows] = _attend_sequences(
            _as_rows, [tensor[:, rows] for tensor in tensors], scale
        )
    for columns in _cut_strips(query, dim=2):
        strip = [tensor[:, :, columns] for tensor in tensors]
        row_pass = out[:, :, columns], lse[:, :, columns]
        column_pass = _attend_sequences(_as_columns, strip, scale)
        out[:, :, columns], lse[:, :, columns] = _merge(row_pass, column_pass, strip, scale)
    return _head_major(out), lse


def _merge(
    row_pass: tuple[Tensor, Tensor],
    column_pass: tuple[Tensor, Tensor],
    tensors: Sequence[Tensor],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Merge the outputs and log-sum-exps of both passes, token-major.

    Both passes count the position itself, so its term is subtracted once. The total stays at least 1: the
    larger pass has weight 1, and the self term is at most the smaller pass's weight.
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
def _flash_fake(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, height, width, _ = query.shape
    lse = query.new_empty((batch, height, width, heads), dtype=torch.float32)
    return _like_head_major(query), lse


@torch.library.custom_op("ccsegformer::flash_criss_cross_backward", mutates_args=())
def _flash_criss_cross_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, each (batch, heads, height, width, head_dim)."""
    tensors = [*(_token_major(tensor) for tensor in (grad, query, key, value, out)), lse]
    grads = [torch.empty_like(tensors[1]) for _ in range(3)]
    # With the merged output and log-sum-exp, each pass's backward returns its exact share of the gradient.
    for rows in _cut_strips(tensors[1], dim=1):
        shares = _sequence_gradients(_as_rows, [tensor[:, rows] for tensor in tensors], scale)
        for total, share in zip(grads, shares, strict=True):
            total[:, rows] = share
    for columns in _cut_strips(tensors[1], dim=2):
        strip = [tensor[:, :, columns] for tensor in tensors]
        shares = [share.float() for share in _sequence_gradients(_as_columns, strip, scale)]
        _subtract_self(shares, strip, scale)
        for total, share in zip(grads, shares, strict=True):
            total[:, :, columns] = share.add_(total[:, :, columns])
    return tuple(_head_major(each) for each in grads)  # type: ignore[return-value]


def _subtract_self(shares: Sequence[Tensor], tensors: Sequence[Tensor], scale: float) -> None:
    """Subtract in place the gradients of each position's self term, which both passes include."""
    grad, query, key, value, out, lse = tensors
    self_weight = (_dot(query, key).mul_(scale) - lse).exp_()
    self_grad = self_weight * (_dot(grad, value) - _dot(grad, out)) * scale
    for share, tensor, weight in zip(
        shares, (key, query, grad), (self_grad, self_grad, self_weight), strict=True
    ):
        share.addcmul_(tensor, weight.unsqueeze(-1), value=-1)


@_flash_criss_cross_backward.register_fake
def _flash_backward_fake(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _like_head_major(query), _like_head_major(key), _like_head_major(value)


def _save_flash(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, key, value, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate_flash(ctx, grad, _):  # type: ignore[no-untyped-def]
    return *_flash_criss_cross_backward(grad, *ctx.saved_tensors, ctx.scale), None


_flash_criss_cross.register_autograd(_differentiate_flash, setup_context=_save_flash)
declare_autocast("flash_criss_cross")


def _token_major(tensor: Tensor) -> Tensor:
    """Make (batch, heads, height, width, head_dim) a contiguous (batch, height, width, heads, head_dim)."""
    return tensor.permute(0, 2, 3, 1, 4).contiguous()


def _head_major(tensor: Tensor) -> Tensor:
    """Undo `_token_major` by a view."""
    return tensor.permute(0, 3, 1, 2, 4)


def _like_head_major(tensor: Tensor) -> Tensor:
    batch, heads, height, width, head_dim = tensor.shape
    return _head_major(tensor.new_empty((batch, height, width, heads, head_dim)))


def _cut_strips(tensor: Tensor, dim: int) -> Iterator[slice]:
    """Cut a dimension into strips on a CPU, so that a pass needs little memory beside its output."""
    length = tensor.shape[dim]
    step = max(STRIP_ELEMENTS * length // tensor.numel(), 1) if tensor.device.type == "cpu" else length
    for first in range(0, length, step):
        yield slice(first, min(first + step, length))


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the dot product over the last dimension, in float32."""
    return (left.float() * right).sum(dim=-1)


def _as_rows(tensor: Tensor) -> Tensor:
    """View token-major (B, H, W, heads, ...) as sequences along the width, (B * H, heads, W, ...)."""
    return tensor.flatten(0, 1).transpose(1, 2)


def _as_columns(tensor: Tensor) -> Tensor:
    """View token-major (B, H, W, heads, ...) as sequences along the height, (B, W * heads, H, ...)."""
    return tensor.flatten(2, 3).transpose(1, 2)


def _attend_sequences(
    as_sequences: AsSequences, tensors: Sequence[Tensor], scale: float
) -> tuple[Tensor, Tensor]:
    """Run one pass over query, key and value. Return its token-major output and log-sum-exp."""
    query, key, value = map(as_sequences, tensors)
    out, lse = _attention(query, key, value, scale)
    shape = tensors[0].shape
    return out.transpose(1, 2).reshape(shape), lse.transpose(1, 2).reshape(shape[:-1])


def _sequence_gradients(as_sequences: AsSequences, tensors: Sequence[Tensor], scale: float) -> list[Tensor]:
    """Return one pass's gradients of query, key and value, from grad, query, key, value, out and lse."""
    grad, query, key, value, out, lse = map(as_sequences, tensors)
    grads = _attention_backward(grad, query, key, value, out, lse, scale)
    return [each.transpose(1, 2).reshape(tensors[0].shape) for each in grads]


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend in (batch, heads, length, head_dim) sequences. Also return the float32 log-sum-exp."""
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
    return _efficient_attention(query, key, value, scale)


def _attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `_attention`, given any output and log-sum-exp."""
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, False, scale=scale
        )
    return _efficient_attention_backward(grad, query, key, value, out, lse, scale)


def _efficient_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute `_attention` on CUDA."""
    out, lse, _, _ = aten._scaled_dot_product_efficient_attention(query, key, value, None, True, scale=scale)
    return out, lse[..., : query.shape[2]]  # the kernel pads the length to a multiple of 32


def _efficient_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `_attention_backward` on CUDA."""
    # The kernel reads the log-sum-exp in its own format: dense along the length and padded with infinity.
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
