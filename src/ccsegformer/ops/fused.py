"""Exact criss-cross attention in Triton kernels, for CUDA. README.md in this folder has the derivation.

Each kernel runs twice: first along the rows, into a float32 buffer, then along the columns, continuing from
that buffer. One program writes each element, in a fixed order, so results are deterministic without atomics.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ccsegformer.ops._autocast import declare_autocast

LARGEST_HEAD_DIM = 64
HAS_TRITON = importlib.util.find_spec("triton") is not None
# In this mode Triton runs kernels in Python on tensors of any device. The tests use it without a GPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def fused_refusal(query: Tensor, value: Tensor) -> str | None:
    """Return why the fused backend does not support these tensors, or None if it does."""
    device, head_dim, value_dim = query.device, query.shape[-1], value.shape[-1]
    if device.type != "cuda" and not INTERPRETED:
        return f"it runs on cuda, not on {device.type}"
    if not HAS_TRITON:
        return "it needs triton, which is not installed"
    if device.type == "cuda" and (torch.version.hip or torch.cuda.get_device_properties(device).major < 8):
        return "it needs an NVIDIA GPU of compute capability 8.0 or above"
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, bfloat16 or float16, not in {query.dtype}"
    if head_dim > LARGEST_HEAD_DIM:
        return f"head_dim may be at most {LARGEST_HEAD_DIM}, not {head_dim}"
    if value_dim != head_dim:
        return f"value_dim must equal head_dim, which is {head_dim}, not {value_dim}"
    return None


def fused_criss_cross_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend in (batch, heads, height, width, head_dim) tensors, as `criss_cross_attention` does."""
    return _fused_criss_cross(query, key, value, scale)[0]


@torch.library.custom_op("ccsegformer::fused_criss_cross", mutates_args=())
def _fused_criss_cross(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp in base 2, float32 (batch, heads, height, width)."""
    from ccsegformer.ops import _kernels

    query, key, value = (_dense(tensor) for tensor in (query, key, value))
    out, lse = _like_token_major(query), _scalar_for_each(query)
    partial = _float32(out)
    _launch(_kernels.attend, (query, key, value, partial, partial, lse), scale, resume=False)
    _launch(_kernels.attend, (query, key, value, partial, out, lse), scale, resume=True)
    return out, lse


@_fused_criss_cross.register_fake
def _fused_fake(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _like_token_major(query), _scalar_for_each(query)


@torch.library.custom_op("ccsegformer::fused_criss_cross_backward", mutates_args=())
def _fused_criss_cross_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, each (batch, heads, height, width, head_dim)."""
    from ccsegformer.ops import _kernels

    inputs = [_dense(tensor) for tensor in (query, key, value, grad)]
    grad_query, grad_key, grad_value = (_like_token_major(tensor) for tensor in (query, key, value))
    delta = torch.empty_like(lse)

    partial = _float32(grad_query)
    for resume, target in ((False, partial), (True, grad_query)):
        tensors = (*inputs, out, partial, target, lse, delta)
        _launch(_kernels.differentiate_query, tensors, scale, resume)

    partials = [_float32(grad_key), _float32(grad_value)]
    for resume, targets in ((False, partials), (True, [grad_key, grad_value])):
        tensors = (*inputs, *partials, *targets, lse, delta)
        _launch(_kernels.differentiate_key_value, tensors, scale, resume)
    return grad_query, grad_key, grad_value


@_fused_criss_cross_backward.register_fake
def _fused_backward_fake(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _like_token_major(query), _like_token_major(key), _like_token_major(value)


def _save_fused(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    query, key, value, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate_fused(ctx, grad, _):  # type: ignore[no-untyped-def]
    return *_fused_criss_cross_backward(grad, *ctx.saved_tensors, ctx.scale), None


_fused_criss_cross.register_autograd(_differentiate_fused, setup_context=_save_fused)
declare_autocast("fused_criss_cross")


def _launch(kernel: Any, tensors: Sequence[Tensor], scale: float, resume: bool) -> None:
    """Run a kernel along the rows or, with `resume`, along the columns from where the rows ended."""
    batch, heads, height, width, head_dim = tensors[0].shape
    lines, length = (width, height) if resume else (height, width)
    order = (0, 1, 3, 2) if resume else (0, 1, 2, 3)
    arguments = [(tensor, tuple(tensor.stride(axis) for axis in order)) for tensor in tensors]
    tile, step, warps = _tiles(length, tensors[0].dtype)
    grid = (-(-length // tile) * lines * heads * batch,)
    with torch.cuda.device_of(tensors[0]):
        kernel[grid](
            *arguments,
            *(heads, lines, length, scale),
            HEAD_DIM=head_dim,
            DIM=_power_of_two(head_dim),
            TILE=tile,
            STEP=step,
            PRECISION="tf32x3",  # full float32 precision on tensor cores; no effect on 16-bit tensors
            RESUME=resume,
            num_warps=warps,
            num_stages=2,
            enable_fp_fusion=True,  # the default, but Triton 3.9 warns that it will change
        )


def _tiles(length: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Return the positions per program, the positions per step, and the warps.

    The values fit the registers and shared memory of Ampere and later GPUs. They are fixed rather than
    autotuned, so that every run adds in the same order.
    """
    tile, step, rows_of_a_warp = (64, 16, 8) if dtype == torch.float32 else (128, 64, 16)
    tile, step = min(tile, _power_of_two(length)), min(step, _power_of_two(length))
    return tile, step, tile // rows_of_a_warp


def _power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size` and large enough for `tl.dot`."""
    return max(16, 1 << (size - 1).bit_length())


def _dense(tensor: Tensor) -> Tensor:
    """Return the tensor with dense head channels, copying it only if they are not."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _like_token_major(tensor: Tensor) -> Tensor:
    """Return an empty tensor of this shape, laid out as (batch, height, width, heads, head_dim)."""
    batch, heads, height, width, head_dim = tensor.shape
    return tensor.new_empty((batch, height, width, heads, head_dim)).permute(0, 3, 1, 2, 4)


def _scalar_for_each(tensor: Tensor) -> Tensor:
    """Return an empty float32 tensor with one element for each head and position."""
    return tensor.new_empty(tensor.shape[:-1], dtype=torch.float32)


def _float32(tensor: Tensor) -> Tensor:
    """Return the tensor itself if it is float32, otherwise an empty float32 tensor like it."""
    return tensor if tensor.dtype == torch.float32 else torch.empty_like(tensor, dtype=torch.float32)
