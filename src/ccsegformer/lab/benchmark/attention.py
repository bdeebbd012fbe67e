"""Prepare criss-cross attention alone for a benchmark."""

from typing import Any

import torch
from torch import Tensor

from ccsegformer.lab.benchmark.worker import Work
from ccsegformer.ops import criss_cross_attention

CHECKED_GRID_SIDE = 128
"""Largest side of the grid on which results are checked, in positions."""


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
    """Prepare a backend on seeded normal tensors.

    Args:
        backend: Backend of `criss_cross_attention`.
        height: Height of the grid, in positions.
        width: Width of the grid, in positions.
        batch: Number of grids.
        heads: Number of heads.
        head_dim: Channels per head.
        dtype: Dtype of the inputs, which are drawn in float32 and rounded.
        training: Run forward and backward instead of forward only.
        device: Device to run on.
        compute: Dtype to compute in, if not `dtype`.
    """
    generator = torch.Generator().manual_seed(0)
    # Memory layout as the projections produce it: tokens first, then heads.
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
    # Products: scores and weighted sum; backward recomputes the scores and needs four more. Tensors moved:
    # query, key and value in, one out; backward reads those four and a gradient, and writes three.
    products, exponentials, tensors_moved = (7, 2, 12) if training else (2, 1, 4)
    amounts = {
        "matrix product": products * 2 * scores * head_dim,
        "copy": tensors_moved * query.numel() * query.itemsize,
        "exponentials": exponentials * scores,
    }
    return Work(run, lambda: dict(zip(names, run(), strict=False)), amounts)


def truth(specification: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the specification to check results against, possibly on a smaller grid, and its description."""
    side = min(specification["height"], specification["width"], CHECKED_GRID_SIDE)
    exact = {"backend": "reference", "compute": "float64", "height": side, "width": side}
    return {**specification, **exact}, f"the textbook formula, float64, at {side} x {side}"
