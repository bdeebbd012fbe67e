"""Autocast, as PyTorch's own attention has it."""

import torch
from torch import Tensor
from torch.library import Library

_fragment = Library("ccsegformer", "FRAGMENT")  # what it registers lasts as long as it does


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Where autocast is on, all but float64 in its dtype, which is `scaled_dot_product_attention`'s rule."""
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor if tensor.dtype == torch.float64 or not tensor.is_floating_point() else tensor.to(dtype)
        for tensor in tensors
    )


def declare_autocast(name: str) -> None:
    """Let an operator of ours cast its query, key and value under autocast, and then compute without it.

    `torch.library.register_autocast` would cast to one dtype, whichever autocast is for.
    """
    operator = getattr(torch.ops.ccsegformer, name).default

    def cast_and_call(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        query, key, value = cast_for_autocast(query, key, value)
        with torch.autocast(query.device.type, enabled=False):
            result: tuple[Tensor, Tensor] = operator(query, key, value, scale)
        return result

    for key in ("AutocastCPU", "AutocastCUDA"):
        _fragment.impl(name, cast_and_call, key)
