"""Criss-cross attention alone: each backend against the textbook formula."""

from typing import Any

import torch
from torch import Tensor

from ccsegformer.lab.benchmark.worker import Work
from ccsegformer.ops import criss_cross_attention

CHECKED_SIDE = 128
"""Of the grid on which a backend is checked."""


def prepare(
    *,
    backend: str,
    height: int,
    width: int,
    batch: int,
    heads: int,
    head_dim: int,
    dtype: str,
    training: bool,
    device: str,
    compute: str | None = None,
) -> Work:
    """A backend on seeded normal tensors; `training`: forward and backward.

    Args:
        dtype: of the inputs, which are drawn in float32 and rounded to it.
        compute: the dtype to compute in, where it is another one.
    """
    generator = torch.Generator().manual_seed(0)
    # As the projections make them: token-major, seen head by head.
    drawn = torch.randn(4, batch, height, width, heads, head_dim, generator=generator)
    tensors = drawn.to(device, getattr(torch, dtype)).to(getattr(torch, compute or dtype))
    query, key, value, grad = (
        tensor.permute(0, 3, 1, 2, 4).requires_grad_(training) for tensor in tensors.unbind()
    )

    def forward_and_backward() -> list[Tensor]:
        out = criss_cross_attention(query, key, value, backend=backend)  # type: ignore[arg-type]
        return [out, *torch.autograd.grad(out, [query, key, value], grad)]

    def forward() -> list[Tensor]:
        return [criss_cross_attention(query, key, value, backend=backend)]  # type: ignore[arg-type]

    run = forward_and_backward if training else forward
    names = ("output", "grad of query", "grad of key", "grad of value")
    scores = batch * heads * height * width * (height + width - 1)
    # Products: the scores and the weighted sum; backward the scores again and four more. Tensors moved:
    # query, key and value in, one out; backward those four and a gradient in, three out.
    products, exponentials, tensors_moved = (7, 2, 12) if training else (2, 1, 4)
    amounts = {
        "matrix product": products * 2 * scores * head_dim,
        "copy": tensors_moved * query.numel() * query.itemsize,
        "exponentials": exponentials * scores,
    }
    return Work(run, lambda: dict(zip(names, run(), strict=False)), amounts)


def truth(specification: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What a backend is checked against: a specification, perhaps of a smaller grid, and its name."""
    side = min(specification["height"], specification["width"], CHECKED_SIDE)
    exact = {"backend": "reference", "compute": "float64", "height": side, "width": side}
    return {**specification, **exact}, f"the textbook formula, float64, at {side} x {side}"
