import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate

from ccsegformer.models import loss as loss_module
from ccsegformer.models.loss import resized_cross_entropy
from ccsegformer.models.resizing import line_weights

IGNORE = 255


def logits_and_labels(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORE
    return logits, labels


@pytest.mark.parametrize("elements", [1, 1500, 2**30])
@pytest.mark.parametrize("size", [(28, 36), (26, 33), (7, 9), (5, 40), (1, 1)])
def test_value_and_gradient_equal_pytorchs(
    size: tuple[int, int], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "TILE_ELEMENTS", elements)
    monkeypatch.setattr(loss_module, "TILE_WIDTH", 11)
    logits, labels = logits_and_labels(size)
    labels[0, 0, 0] = 0
    whole, strips = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    resized = interpolate(whole, size=size, mode="bilinear")
    expected = cross_entropy(resized, labels, ignore_index=IGNORE)
    found = resized_cross_entropy(strips, labels, IGNORE)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    (3 * expected).backward()
    (3 * found).backward()
    torch.testing.assert_close(strips.grad, whole.grad, atol=1e-12, rtol=1e-12)


def test_loss_is_0_without_labels() -> None:
    logits, labels = logits_and_labels((28, 36))
    logits.requires_grad_()
    loss = resized_cross_entropy(logits, torch.full_like(labels, IGNORE), IGNORE)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_without_gradients_the_value_is_the_same() -> None:
    logits, labels = logits_and_labels((28, 36))
    with torch.no_grad():
        without = resized_cross_entropy(logits.clone().requires_grad_(), labels, IGNORE)
    assert not without.requires_grad
    torch.testing.assert_close(without, resized_cross_entropy(logits, labels, IGNORE))


def test_half_precision_is_computed_in_float32() -> None:
    logits, labels = logits_and_labels((28, 36))
    half = logits.bfloat16().requires_grad_()
    loss = resized_cross_entropy(half, labels, IGNORE)
    assert loss.dtype == torch.float32
    expected = resized_cross_entropy(half.detach().double(), labels, IGNORE)
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-6)
    loss.backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def by_us(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return resized_cross_entropy(logits, labels, IGNORE)


def by_torch(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    resized = interpolate(logits, size=labels.shape[1:], mode="bilinear")
    return cross_entropy(resized, labels, ignore_index=IGNORE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_does_not_reduce_precision(compiled: bool, dtype: torch.dtype) -> None:
    logits, labels = logits_and_labels((28, 36))
    whole = logits.clone().requires_grad_()
    expected = by_torch(whole, labels)
    expected.backward()
    ours = torch.compile(by_us, fullgraph=True, backend="aot_eager") if compiled else by_us
    errors = []
    for compute in (ours, by_torch):
        leaf = logits.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = compute(leaf, labels)
            loss.backward()
        assert loss.dtype == leaf.grad.dtype == dtype
        errors.append([(loss - expected).abs(), (leaf.grad - whole.grad).norm() / whole.grad.norm()])
    for error, theirs in zip(*errors, strict=True):
        assert error <= 2 * theirs + torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:1], y), "labels (2, 28, 36) and logits (1, 5, 7, 9) differ in batch size"),
        (lambda x, y: (x, y[:1]), "labels (1, 28, 36) and logits (2, 5, 7, 9) differ in batch size"),
        (lambda x, y: (x, y[0]), "labels must be int64 (batch, H, W), not torch.int64 (28, 36)"),
        (lambda x, y: (x, y[:, None]), "not torch.int64 (2, 1, 28, 36)"),
        (lambda x, y: (x, y.int()), "not torch.int32 (2, 28, 36)"),
        (lambda x, y: (x, y.byte()), "not torch.uint8 (2, 28, 36)"),
        (lambda x, y: (x, y.float()), "not torch.float32 (2, 28, 36)"),
        (lambda x, y: (x[0], y), "logits must be floating point (batch, classes, h, w), not torch.float"),
        (lambda x, y: (x.long(), y), "logits must be floating point (batch, classes, h, w), not torch.int64"),
    ],
)
def test_mismatched_tensors_are_refused(change: Callable[..., Any], message: str) -> None:
    logits, labels = change(*logits_and_labels((28, 36)))
    with pytest.raises(ValueError, match=re.escape(message)):
        resized_cross_entropy(logits, labels, IGNORE)


@pytest.mark.parametrize("wrong", [5, -1, 254, -100])
def test_labels_outside_the_classes_are_refused(wrong: int) -> None:
    logits, labels = logits_and_labels((28, 36))
    labels[1, 27, 35] = wrong
    message = f"^label {wrong} is neither one of the 5 classes nor the ignore index 255$"
    with pytest.raises(ValueError, match=message):
        resized_cross_entropy(logits, labels, IGNORE)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        torch.compile(by_us, fullgraph=True, backend="aot_eager")(logits, labels)


@pytest.mark.parametrize(("source", "target"), [(1, 8), (5, 17), (5, 5), (9, 4), (128, 512)])
def test_line_weights_equal_interpolate(source: int, target: int) -> None:
    image = torch.rand(1, 1, source, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = interpolate(image, size=(target, 1), mode="bilinear")[0, 0]
    for first in range(0, target, 3):
        last = min(first + 3, target)
        needed, weights = line_weights(source, target, first, last, image)
        torch.testing.assert_close(weights @ image[0, 0, needed], expected[first:last], atol=1e-12, rtol=0)
