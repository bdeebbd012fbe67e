"""Cross entropy at the labels' size, without the logits of that size."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from ccsegformer.models.resizing import vertical_weights

STRIP_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}
"""Of the resized logits, that are there at a time: enough to keep a device busy."""


def resized_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Mean cross entropy over the labelled pixels, the logits resized bilinearly to the labels' size.

    Logits of 150 classes at an image's full size are its largest tensor, and autograd would keep three of
    them. Here rows are resized a few at a time, and their gradient is taken in the same pass.

    Args:
        logits: (batch, classes, h, w), any floating dtype; computed in float32, or float64 as given.
        labels: (batch, H, W) int64 class ids or `ignore_index`.

    Returns:
        A scalar; 0 where nothing is labelled.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # A crop may hold no labelled pixel at all: its loss is 0, not 0 / 0.
    labelled = (labels != ignore_index).sum().clamp(min=1)
    if torch.compiler.is_compiling() or labels.device.type not in STRIP_ELEMENTS:
        resized = interpolate(logits, size=labels.shape[1:], mode="bilinear")
        return cross_entropy(resized, labels, ignore_index=ignore_index, reduction="sum") / labelled
    total: Tensor = _ResizedCrossEntropy.apply(logits, labels, ignore_index, torch.is_grad_enabled())
    return total / labelled


class _ResizedCrossEntropy(torch.autograd.Function):
    """The sum over the labelled pixels."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, wants_grad: bool) -> Tensor:
        batch, classes, height, _ = logits.shape
        rows = max(STRIP_ELEMENTS[labels.device.type] // (batch * classes * labels.shape[2]), 1)
        wants_grad = wants_grad and logits.requires_grad
        grad = torch.zeros_like(logits) if wants_grad else None
        total = logits.new_zeros((), dtype=torch.float64)
        for first in range(0, labels.shape[1], rows):
            own = labels[:, first : first + rows]
            needed, weights = vertical_weights(height, labels.shape[1], first, first + own.shape[1], logits)
            part = logits[:, :, needed].detach().requires_grad_(wants_grad)
            with torch.set_grad_enabled(wants_grad):
                resized = interpolate(weights @ part, size=own.shape[1:], mode="bilinear")
                loss = cross_entropy(resized, own, ignore_index=ignore_index, reduction="sum")
            total += loss.detach()
            if grad is not None:
                grad[:, :, needed] += torch.autograd.grad(loss, part)[0]
        ctx.save_for_backward(grad)
        return total.to(logits.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * scale, None, None, None
