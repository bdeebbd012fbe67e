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
def test_value_and_gradient_are_those_of_the_whole(
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


def test_nothing_labelled_is_nothing_lost() -> None:
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


def test_half_precision_is_lost_in_float32() -> None:
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
def test_autocast_takes_no_digits(compiled: bool, dtype: torch.dtype) -> None:
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


@pytest.mark.parametrize(("source", "target"), [(1, 8), (5, 17), (5, 5), (9, 4), (128, 512)])
def test_rows_are_those_of_interpolate(source: int, target: int) -> None:
    image = torch.rand(1, 1, source, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = interpolate(image, size=(target, 1), mode="bilinear")[0, 0]
    for first in range(0, target, 3):
        last = min(first + 3, target)
        needed, weights = line_weights(source, target, first, last, image)
        torch.testing.assert_close(weights @ image[0, 0, needed], expected[first:last], atol=1e-12, rtol=0)
