"""The public function: validate, choose a backend, call it."""

from typing import Literal

from torch import Tensor

from ccsegformer.ops._autocast import cast_for_autocast
from ccsegformer.ops.flash import flash_criss_cross_attention, flash_refusal
from ccsegformer.ops.fused import fused_criss_cross_attention, fused_refusal
from ccsegformer.ops.reference import reference_criss_cross_attention

Backend = Literal["fused", "flash", "reference"]


def criss_cross_attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None, backend: Backend | None = None
) -> Tensor:
    """Criss-cross attention: each position attends to its own row and column, H + W - 1 positions.

    `out[h, w] = sum_p softmax_p(scale * query[h, w] . key[p]) value[p]`, where p runs over row h and
    column w, the position itself counted once, under one softmax (Huang et al., CCNet,
    https://arxiv.org/abs/1811.11721, with heads and a scale). Differentiable in all three tensors.

    Args:
        query, key: (batch, heads, height, width, head_dim), of one dtype and device.
        value: (batch, heads, height, width, value_dim); value_dim may differ from head_dim.
        scale: factor of the scores; `head_dim ** -0.5` when None.
        backend: None takes the first that accepts the tensors: "fused" (Triton's kernels, O(N) memory;
            float32, bfloat16 and float16 on CUDA, head_dim up to 64), "flash" (exact, O(N) memory; float32,
            bfloat16 and float16 on CPU and CUDA), then "reference" (any dtype and device, O(N (H + W))
            memory).

    Returns:
        (batch, heads, height, width, value_dim), in the dtype of the inputs.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a backend that refuses them.
    """
    query, key, value = cast_for_autocast(query, key, value)
    _validate(query, key, value)
    if scale is None:
        scale = query.shape[-1] ** -0.5
    if backend not in (None, "fused", "flash", "reference"):
        raise ValueError(f"backend must be 'fused', 'flash', 'reference' or None, not {backend!r}")
    if backend in (None, "fused"):
        refusal = fused_refusal(query, value)
        if refusal is None:
            return fused_criss_cross_attention(query, key, value, scale)
    if backend in (None, "flash"):
        refusal = flash_refusal(query)
        if refusal is None:
            return flash_criss_cross_attention(query, key, value, scale)
    if backend in (None, "reference"):
        return reference_criss_cross_attention(query, key, value, scale)
    raise ValueError(f"the {backend} backend refuses: {refusal}")


def _validate(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.ndim != 5 or 0 in query.shape:
        raise ValueError(
            f"query must be (batch, heads, height, width, head_dim), none of them 0, not {tuple(query.shape)}"
        )
    if key.shape != query.shape:
        raise ValueError(f"key has shape {tuple(key.shape)}, query has {tuple(query.shape)}")
    if value.ndim != 5 or value.shape[:4] != query.shape[:4] or value.shape[4] == 0:
        raise ValueError(
            f"value must be (batch, heads, height, width, value_dim) over query's {tuple(query.shape[:4])}, "
            f"not {tuple(value.shape)}"
        )
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, query is {query.dtype} on {query.device}"
            )
    if not query.dtype.is_floating_point:
        raise ValueError(f"query must be floating point, not {query.dtype}")
