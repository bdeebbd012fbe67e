"""The public function, which validates its inputs and picks a backend."""

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
    """Attend from each position to the H + W - 1 positions of its own row and column.

    Computes `out[h, w] = sum_p softmax_p(scale * query[h, w] . key[p]) value[p]`, where p runs over row h
    and column w and one softmax covers both. The position itself counts once. This is the attention of
    CCNet (Huang et al., https://arxiv.org/abs/1811.11721) with heads and a scale. Differentiable in all three
    tensors.

    Args:
        query, key: Tensors (batch, heads, height, width, head_dim) of the same dtype and on the same device.
        value: Tensor (batch, heads, height, width, value_dim); value_dim may differ from head_dim.
        scale: Factor of the scores; `head_dim ** -0.5` by default.
        backend: "fused" (Triton kernels; float32, bfloat16 and float16 on CUDA, head_dim up to 64; O(N)
            memory), "flash" (PyTorch's flash kernels; float32, bfloat16 and float16 on CPU and CUDA; O(N)
            memory) or "reference" (any dtype and device; O(N (H + W)) memory). All are exact. The default
            is the first of these that supports the tensors.

    Returns:
        Tensor (batch, heads, height, width, value_dim) in the dtype of the inputs.

    Raises:
        ValueError: Shapes, dtypes or devices do not match, or the backend does not support the tensors.
    """
    query, key, value = cast_for_autocast(query, key, value)
    _check_tensors(query, key, value)
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
    raise ValueError(f"the {backend} backend does not support these tensors: {refusal}")


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.ndim != 5 or 0 in query.shape:
        raise ValueError(
            f"query must be (batch, heads, height, width, head_dim), all at least 1, not {tuple(query.shape)}"
        )
    if key.shape != query.shape:
        raise ValueError(f"key has shape {tuple(key.shape)}, query has {tuple(query.shape)}")
    if value.ndim != 5 or value.shape[:4] != query.shape[:4] or value.shape[4] == 0:
        raise ValueError(
            f"value must be (batch, heads, height, width, value_dim) beginning with {tuple(query.shape[:4])} "
            f"like query, not {tuple(value.shape)}"
        )
    for name, tensor in (("key", key), ("value", value)):
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, query is {query.dtype} on {query.device}"
            )
    if not query.dtype.is_floating_point:
        raise ValueError(f"query must be floating point, not {query.dtype}")
