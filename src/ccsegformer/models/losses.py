"""Weighted sums of cross entropy, focal, Dice and Lovasz-softmax losses at the size of the labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ccsegformer.models.loss import check_class_ids, check_shapes, resized_cross_entropy
from ccsegformer.models.one_label import with_background


@dataclass(frozen=True)
class SegmentationLoss:
    """Sum of losses, each times its weight; those of weight 0 are not computed.

    All resize the logits to the labels bilinearly, ignore unlabelled pixels, and are 0 if no pixel is
    labelled. They are computed in float32 under autocast, in float64 for float64 logits.

    Attributes:
        cross_entropy: Weight of the mean cross entropy.
        focal: Weight of the focal loss, with `gamma` (Lin et al., "Focal Loss for Dense Object Detection",
            2017).
        dice: Weight of the Dice loss of the class probabilities (Milletari et al., "V-Net", 2016).
        lovasz: Weight of the Lovasz-softmax loss (Berman et al., 2018).
        gamma: Exponent of the focal loss; with 0 it is the cross entropy.
        class_weights: Weight of each class's pixels in the means of cross entropy and focal loss, which are
            divided by the sum of the weights. None: 1 each.
    """

    cross_entropy: float = 1.0
    focal: float = 0.0
    dice: float = 0.0
    lovasz: float = 0.0
    gamma: float = 2.0
    class_weights: tuple[float, ...] | None = None

    def __call__(self, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        """Return the loss of logits (batch, classes, h, w) for int64 labels (batch, H, W), a scalar.

        A single logit is that of class 1 against class 0.

        Raises:
            ValueError: As `resized_cross_entropy`.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = with_background(logits if logits.dtype == torch.float64 else logits.float())
            weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
            total = logits.new_zeros(())
            if self.cross_entropy:
                entropy = resized_cross_entropy(logits, labels, ignore_index, weights)
                total = total + self.cross_entropy * entropy
            if not (self.focal or self.dice or self.lovasz):
                return total
            log_shares, targets = _labelled_pixels(logits, labels, ignore_index)
            if self.focal:
                total = total + self.focal * focal_loss(log_shares, targets, self.gamma, weights)
            if self.dice:
                total = total + self.dice * dice_loss(log_shares.exp(), targets)
            if self.lovasz:
                total = total + self.lovasz * lovasz_softmax(log_shares.exp(), targets)
            return total


def focal_loss(log_shares: Tensor, targets: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Return the mean of -(1 - p)^gamma log p, where p is the share of a pixel's own class.

    Args:
        log_shares: Logarithms of class probabilities (pixels, classes).
        targets: Class ids (pixels,).
        gamma: Exponent, at least 0.
        weights: Weights of the classes in the mean; by default 1.
    """
    own = log_shares.gather(1, targets[:, None])[:, 0]
    # Certain pixels lose nothing; without the limit, gamma < 1 would give them an infinite gradient.
    doubt = (-torch.expm1(own)).clamp(min=torch.finfo(own.dtype).eps)
    each = torch.ones_like(own) if weights is None else weights[targets]
    total = each.sum()
    return -(each * doubt**gamma * own).sum() / torch.where(total > 0, total, torch.ones_like(total))


def dice_loss(shares: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - 2 sum(p y) / (sum(p) + sum(y)), averaged over the classes that occur in `targets`.

    Sums run over all pixels of the batch; y is 1 for pixels of the class.

    Args:
        shares: Class probabilities (pixels, classes).
        targets: Class ids (pixels,).
    """
    count = torch.bincount(targets, minlength=shares.shape[1])
    present = count > 0
    if not present.any():
        return shares.sum()  # 0, with a gradient
    own = shares.gather(1, targets[:, None])[:, 0]
    common = torch.zeros_like(shares[0]).index_add(0, targets, own)
    return (1 - 2 * common / (shares.sum(dim=0) + count).clamp(min=1))[present].mean()


def lovasz_softmax(shares: Tensor, targets: Tensor) -> Tensor:
    """Return the Lovasz extension of 1 - IoU, averaged over the classes that occur in `targets`.

    All pixels of the batch count as one image. Arguments as for `dice_loss`.
    """
    losses = []
    for label in torch.unique(targets).tolist():
        is_class = (targets == label).to(shares.dtype)
        errors, order = (is_class - shares[:, label]).abs().sort(descending=True, stable=True)
        losses.append(errors @ _jaccard_steps(is_class[order]))
    return torch.stack(losses).mean() if losses else shares.sum()


def _jaccard_steps(is_class: Tensor) -> Tensor:
    """Return what each further wrong pixel, in this order, adds to 1 - IoU."""
    total = is_class.sum()
    wrong = is_class.cumsum(0)
    jaccard = 1 - (total - wrong) / (total + (1 - is_class).cumsum(0))
    return torch.diff(jaccard, prepend=jaccard.new_zeros(1))


def _labelled_pixels(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return log probabilities (pixels, classes) and class ids (pixels,) of the labelled pixels."""
    check_shapes(logits, labels)
    if labels.device.type == "cpu":
        check_class_ids(labels, logits.shape[1], ignore_index)
    resized = interpolate(logits, size=labels.shape[1:], mode="bilinear").permute(0, 2, 3, 1)
    labelled = labels != ignore_index
    return resized[labelled].log_softmax(dim=1), labels[labelled]
