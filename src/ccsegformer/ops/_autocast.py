"""Autocast rules for our operators, the same as for PyTorch's own attention."""

import torch
from torch import Tensor
from torch.library import Library

_fragment = Library("ccsegformer", "FRAGMENT")  # registrations last as long as this object


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast floating-point tensors except float64 to the autocast dtype, if autocast is on.

    This is the rule that `scaled_dot_product_attention` follows.
    """
    device = tensors[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor if tensor.dtype == torch.float64 or not tensor.is_floating_point() else tensor.to(dtype)
        for tensor in tensors
    )


def declare_autocast(name: str) -> None:
    """Make an operator cast query, key and value under autocast, then compute with autocast off.

    `torch.library.register_autocast` would always cast to one fixed dtype instead of the autocast dtype.
    """
    operator = getattr(torch.ops.ccsegformer, name).default

    def cast_and_call(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        query, key, value = cast_for_autocast(query, key, value)
        with torch.autocast(query.device.type, enabled=False):
            result: tuple[Tensor, Tensor] = operator(query, key, value, scale)
        return result

    for key in ("AutocastCPU", "AutocastCUDA"):
        _fragment.impl(name, cast_and_call, key)
