"""The distillation: its loss, the teacher's windows, and that batch norm keeps its statistics."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ccsegformer.conversion.distillation import distill, divergence, windowed_logits
from ccsegformer.conversion.images import batches, crops, divide_images
from ccsegformer.conversion.student import build_student
from ccsegformer.errors import TrainingError
from ccsegformer.labelling.preprocess import Preprocessing
from tests.models.test_modeling import pixels


def test_the_divergence_is_that_of_the_probabilities() -> None:
    student, teacher = torch.randn(2, 1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    p, q = teacher.softmax(dim=1), student.softmax(dim=1)
    assert divergence(student, teacher) == pytest.approx(
        float((p * (p / q).log()).sum(dim=1).mean()), rel=1e-5
    )
    assert divergence(teacher, teacher) == 0
    single = divergence(torch.tensor([[[[2.0]]]]), torch.tensor([[[[0.0]]]]))  # one label: sigmoids
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([2.0, -2.0]).sigmoid()
    assert single == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)


@torch.no_grad()
def test_windows_average_their_logits(teacher: nn.Module) -> None:
    image = pixels(1, 64, 96)
    whole = teacher(image).logits
    assert torch.equal(windowed_logits(teacher, image, None), whole)
    assert torch.equal(windowed_logits(teacher, image, 96), whole)
    found = windowed_logits(teacher, image, 64)
    left, right = teacher(image[..., :64]).logits, teacher(image[..., 32:]).logits
    assert torch.equal(found[..., :8], left[..., :8]) and torch.equal(found[..., 16:], right[..., 8:])
    torch.testing.assert_close(found[..., 8:16], (left[..., 8:] + right[..., :8]) / 2)


def test_distillation_brings_the_student_closer(teacher: nn.Module, images: Path, tmp_path: Path) -> None:
    student = build_student(teacher, "criss_cross")
    with torch.no_grad():
        student.decode_head.classifier.bias[0] += 1.0
    stream = crops(divide_images(images, Preprocessing()).used, Preprocessing(), size=32, count=8)
    [seen] = batches(stream, 8)
    target, before = teacher(seen).logits, student(seen).logits
    statistics = student.decode_head.batch_norm.running_mean.clone()
    loss = distill(teacher, student, stream, tmp_path, batch=2, learning_rate=3e-3)
    assert [step for step, _ in loss] == [1, 2, 3, 4]
    assert divergence(student(seen).logits, target) < 0.9 * divergence(before, target)
    assert torch.equal(student.decode_head.batch_norm.running_mean, statistics) and not student.training
    assert torch.equal(teacher(seen).logits, target)


def test_a_loss_that_is_not_finite_is_said(teacher: nn.Module, images: Path, tmp_path: Path) -> None:
    student = build_student(teacher, "criss_cross")
    nn.init.constant_(student.decode_head.classifier.bias, float("nan"))
    stream = crops(divide_images(images, Preprocessing()).used, Preprocessing(), size=32, count=2)
    with pytest.raises(TrainingError, match="step 1: the loss is nan"):
        distill(teacher, student, stream, tmp_path)
