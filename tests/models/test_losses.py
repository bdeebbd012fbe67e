"""Losses against plain float64 implementations that follow the papers pixel by pixel."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate

from ccsegformer.models.loss import resized_cross_entropy
from ccsegformer.models.losses import SegmentationLoss, lovasz_softmax

IGNORE = 255
WEIGHTS = (0.5, 0.0, 3.0, 1.0, 2.0)


def case(classes: int = 5, size: tuple[int, int] = (9, 11)) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels with ignored pixels in which the last class does not occur."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, classes, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes - 1, (2, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORE
    return logits, labels


def pixels_of(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    resized = interpolate(logits, size=labels.shape[1:], mode="bilinear").softmax(dim=1)
    shares, own = [], []
    for batch, row, column in itertools.product(*map(range, labels.shape)):
        if labels[batch, row, column] != IGNORE:
            shares.append(resized[batch, :, row, column])
            own.append(int(labels[batch, row, column]))
    return torch.stack(shares), own


def plain_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    resized = interpolate(logits, size=labels.shape[1:], mode="bilinear")
    return cross_entropy(resized, labels, torch.tensor(WEIGHTS).to(logits), ignore_index=IGNORE)


def plain_focal(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    shares, own = pixels_of(logits, labels)
    each = [-WEIGHTS[c] * (1 - p[c]) ** 1.5 * p[c].log() for p, c in zip(shares, own, strict=True)]
    return sum(each) / sum(WEIGHTS[c] for c in own)


def plain_dice(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    shares, own = pixels_of(logits, labels)
    losses = []
    for c in sorted(set(own)):
        y = torch.tensor([float(c == o) for o in own], dtype=shares.dtype)
        losses.append(1 - 2 * (y * shares[:, c]).sum() / (y.sum() + shares[:, c].sum()))
    return sum(losses) / len(losses)


def plain_lovasz(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over sorted errors of error times the growth of the Jaccard loss of the wrong set, per class."""
    shares, own = pixels_of(logits, labels)
    losses = []
    for c in sorted(set(own)):
        truth = {i for i, o in enumerate(own) if o == c}
        errors = [1 - p[c] if i in truth else p[c] for i, p in enumerate(shares)]
        wrong: set[int] = set()
        loss, before = torch.zeros((), dtype=shares.dtype), 0.0
        for i in sorted(range(len(own)), key=lambda i: -errors[i].item()):
            wrong.add(i)
            now = len(wrong) / len(truth | wrong)  # 1 - IoU if just these pixels are wrong
            loss, before = loss + errors[i] * (now - before), now
        losses.append(loss)
    return sum(losses) / len(losses)


KINDS: dict[str, tuple[SegmentationLoss, Callable[..., torch.Tensor]]] = {
    "cross_entropy": (SegmentationLoss(class_weights=WEIGHTS), plain_cross_entropy),
    "focal": (SegmentationLoss(0, focal=1, gamma=1.5, class_weights=WEIGHTS), plain_focal),
    "dice": (SegmentationLoss(0, dice=1, class_weights=WEIGHTS), plain_dice),
    "lovasz": (SegmentationLoss(0, lovasz=1, class_weights=WEIGHTS), plain_lovasz),
}


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_the_definition(kind: str) -> None:
    ours, plain = KINDS[kind]
    logits, labels = case()
    found, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    one, other = ours(found, labels, IGNORE), plain(expected, labels)
    torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    one.backward()
    other.backward()
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_gradcheck(kind: str) -> None:
    logits, labels = case(size=(5, 6))
    assert torch.autograd.gradcheck(lambda x: KINDS[kind][0](x, labels, IGNORE), logits.requires_grad_())


def test_a_sum_is_the_sum_of_its_parts() -> None:
    logits, labels = case()
    both = SegmentationLoss(0.5, focal=2, dice=3, lovasz=0.25, gamma=1.5, class_weights=WEIGHTS)
    parts = [KINDS[kind][0](logits, labels, IGNORE) for kind in ("cross_entropy", "focal", "dice", "lovasz")]
    expected = sum(factor * part for factor, part in zip((0.5, 2, 3, 0.25), parts, strict=True))
    torch.testing.assert_close(both(logits, labels, IGNORE), expected)


def test_defaults_are_the_models_own_loss_and_gamma_0_is_cross_entropy() -> None:
    logits, labels = case()
    expected = resized_cross_entropy(logits, labels, IGNORE)
    assert torch.equal(SegmentationLoss()(logits, labels, IGNORE), expected)
    focal = SegmentationLoss(0, focal=1, gamma=0)(logits, labels, IGNORE)
    torch.testing.assert_close(focal, expected)
    ones = resized_cross_entropy(logits, labels, IGNORE, torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(ones, expected)


def test_weighted_cross_entropy_is_the_same_when_compiled() -> None:
    logits, labels = case()
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    compiled = torch.compile(resized_cross_entropy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(logits, labels, IGNORE, weights), resized_cross_entropy(logits, labels, IGNORE, weights)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_pixels_do_not_count(kind: str) -> None:
    logits, labels = case(size=(4, 5))  # the logits' own size, where no other pixel depends on them
    logits.requires_grad_()
    KINDS[kind][0](logits, labels, IGNORE).backward()
    assert logits.grad is not None
    ignored = (labels == IGNORE)[:, None].expand_as(logits)
    assert not logits.grad[ignored].any()
    assert logits.grad[~ignored].any()
    with torch.no_grad():
        changed = torch.where(ignored, 50.0, logits)
        same = KINDS[kind][0](changed, labels, IGNORE)
        assert torch.equal(same, KINDS[kind][0](logits, labels, IGNORE))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", [IGNORE, 1], ids=["nothing labelled", "only weight 0"])
def test_without_a_pixel_that_counts_the_loss_is_0(kind: str, label: int) -> None:
    logits, labels = case()
    logits.requires_grad_()
    loss = KINDS[kind][0](logits, torch.full_like(labels, label), IGNORE)
    loss.backward()
    assert logits.grad is not None
    if label == IGNORE or kind in ("cross_entropy", "focal"):
        assert loss.item() == 0
        assert not logits.grad.any()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_half_precision_compute_in_float32(kind: str) -> None:
    logits, labels = case()
    half = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = KINDS[kind][0](half, labels, IGNORE)
    assert loss.dtype == torch.float32
    expected = KINDS[kind][0](half.detach().double(), labels, IGNORE)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    assert half.grad is not None
    assert half.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_certain_pixels_have_finite_gradients(kind: str, scale: float) -> None:
    labels = torch.arange(4).reshape(1, 2, 2)
    logits = scale * torch.eye(4).reshape(1, 4, 2, 2)
    logits.requires_grad_()
    ours = SegmentationLoss(0, **{kind: 1}, gamma=0.5) if kind != "cross_entropy" else SegmentationLoss()
    loss = ours(logits, labels, IGNORE)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_lovasz_of_whole_labels_is_one_minus_the_mean_iou() -> None:
    targets = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 1, 0, 1, 2, 2])
    shares = torch.nn.functional.one_hot(predicted, 3).double()
    iou = torch.tensor([2 / 3, 1 / 3, 1 / 2], dtype=torch.float64).mean()
    torch.testing.assert_close(lovasz_softmax(shares, targets), 1 - iou)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_labels_are_refused(kind: str) -> None:
    logits, labels = case()
    labels[0, 0, 0] = 5
    with pytest.raises(ValueError, match="label 5 is neither one of the 5 classes"):
        KINDS[kind][0](logits, labels, IGNORE)
    with pytest.raises(ValueError, match="differ in batch size"):
        KINDS[kind][0](logits, labels[:1], IGNORE)
