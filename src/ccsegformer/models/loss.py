"""Cross entropy at the size of the labels, without storing logits at that size."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from ccsegformer.models.one_label import with_background
from ccsegformer.models.resizing import line_weights

TILE_ELEMENTS = 2**18
"""Resized logits held at a time: 1 MiB in float32, which fits a core's cache."""

TILE_WIDTH = 128


def resized_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, weights: Tensor | None = None
) -> Tensor:
    """Return the mean cross entropy over the labelled pixels, with logits resized to the labels' size.

    With 150 classes, logits at full image size are the largest tensor of a training step, and autograd would
    keep three of them. On a CPU they are computed a tile at a time, with their gradient in the same pass.

    Args:
        logits: Tensor (batch, classes, h, w) of any floating-point dtype; a single logit is that of class 1
            against class 0, and the loss is its binary cross entropy. Computation is in float64 for float64
            logits and in float32 for others, under autocast too.
        labels: Tensor (batch, H, W) of int64 class ids or `ignore_index`.
        ignore_index: Label of pixels that do not count.
        weights: Weight of each class in the mean (classes,), in the dtype of the computation; by default 1.

    Returns:
        Scalar; 0 if no pixel is labelled, or none with a weight.

    Raises:
        ValueError: The labels do not match the logits in batch size, shape or dtype, or are not class ids.
            On a GPU and in compiled code, PyTorch itself raises for labels that are not class ids.
    """
    check_shapes(logits, labels)
    logits = with_background(logits if logits.dtype == torch.float64 else logits.float())
    tiled = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if tiled:
        check_class_ids(labels, logits.shape[1], ignore_index)
    # A crop may have no labelled pixel. Its loss is 0, not 0 / 0.
    labelled: Tensor = (labels != ignore_index).sum().clamp(min=1)
    if weights is not None:
        each = weights[labels.masked_fill(labels == ignore_index, 0)]
        total_weight = each.masked_fill(labels == ignore_index, 0).sum()
        labelled = torch.where(total_weight > 0, total_weight, 1)
    if not tiled:
        resized = interpolate(logits, size=labels.shape[1:], mode="bilinear")
        summed = cross_entropy(resized, labels, weights, ignore_index=ignore_index, reduction="sum")
        return summed / labelled
    total: Tensor = _ResizedCrossEntropy.apply(logits, labels, ignore_index, weights)
    return total / labelled


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """Raise a `ValueError` unless logits (batch, classes, h, w) and int64 labels (batch, H, W) match."""
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point (batch, classes, h, w), not {logits.dtype} {tuple(logits.shape)}"
        )
    if labels.ndim != 3 or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 (batch, H, W), not {labels.dtype} {tuple(labels.shape)}")
    if labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels {tuple(labels.shape)} and logits {tuple(logits.shape)} differ in batch size"
        )


def check_class_ids(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raise a `ValueError` for a label that is neither a class id nor the ignore index."""
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        raise ValueError(
            f"label {labels[wrong][0]} is neither one of the {classes} classes nor the ignore index "
            f"{ignore_index}"
        )


class _ResizedCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropy over the labelled pixels, each times the weight of its class."""

    # Resizing is a matrix product here, which autocast would run in bfloat16, unlike `interpolate`.
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, weights: Tensor | None
    ) -> Tensor:
        batch, classes, *source = logits.shape
        grids = logits.permute(0, 2, 3, 1).contiguous()
        grad = torch.zeros_like(grids) if ctx.needs_input_grad[0] else None
        rows = _cut(labels.shape[1], max(TILE_ELEMENTS // (classes * TILE_WIDTH), 1), source[0], grids)
        columns = _cut(labels.shape[2], TILE_WIDTH, source[1], grids)
        total = grids.new_zeros((), dtype=torch.float64)
        for image in range(batch):
            for down, above, vertical in rows:
                strip = (vertical @ grids[image, above].flatten(1)).unflatten(1, (-1, classes))
                strip_grad = torch.zeros_like(strip) if grad is not None else None
                for right, before, horizontal in columns:
                    tile = horizontal @ strip[:, before]  # (rows, columns, classes)
                    own = labels[image, down, right].reshape(-1)
                    total += _descend(tile.view(-1, classes), own, ignore_index, weights)
                    if strip_grad is not None:
                        strip_grad[:, before] += horizontal.mT @ tile
                if grad is not None and strip_grad is not None:
                    grad[image, above] += (vertical.mT @ strip_grad.flatten(1)).view_as(grad[image, above])
        ctx.save_for_backward(grad)
        return total.to(logits.dtype)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return (grad * scale).permute(0, 3, 1, 2), None, None, None


def _cut(length: int, step: int, source: int, like: Tensor) -> list[tuple[slice, slice, Tensor]]:
    """Cut a line into parts. Return each part, the source positions that it needs, and their weights."""
    firsts = range(0, length, step)
    parts = [slice(first, min(first + step, length)) for first in firsts]
    return [(part, *line_weights(source, length, part.start, part.stop, like)) for part in parts]


def _descend(logits: Tensor, labels: Tensor, ignore_index: int, weights: Tensor | None) -> Tensor:
    """Return the summed cross entropy of (pixels, classes) logits, and overwrite them with its gradient."""
    ignored = (labels == ignore_index)[:, None]
    places = labels[:, None].masked_fill(ignored, 0)
    peak = logits.amax(dim=1, keepdim=True)
    own = logits.gather(1, places) - peak
    sums = logits.sub_(peak).exp_().sum(dim=1, keepdim=True)
    losses = (sums.log() - own).masked_fill_(ignored, 0)
    logits.mul_(sums.reciprocal_().masked_fill_(ignored, 0))
    logits.scatter_add_(1, places, ignored.to(logits.dtype) - 1)
    if weights is not None:
        logits.mul_(weights[places])
        losses.mul_(weights[places])
    return losses.sum(dtype=torch.float64)
