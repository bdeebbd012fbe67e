"""Agreement of a student with its teacher."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from ccsegformer.conversion.agreement import HeldBack, summarize_counts


def test_a_model_agrees_with_itself_and_less_with_another(teacher: nn.Module, images: Path) -> None:
    held_back = HeldBack(teacher, sorted(images.iterdir())[:3])
    same = held_back.compare(teacher)
    assert (same.pixels, same.mean_iou, same.images) == (1, 1, 3)
    nn.init.constant_(teacher.decode_head.classifier.bias[0], 100.0)
    other = held_back.compare(teacher)
    assert other.pixels < 1 and other.mean_iou < 1


def test_windows_change_the_teachers_labels(teacher: nn.Module, images: Path) -> None:
    files = sorted(images.iterdir())[:2]
    assert HeldBack(teacher, files, window=32).compare(teacher).pixels < 1


def test_figures_are_those_of_all_pixels() -> None:
    counts = np.array([[[3, 1, 0], [4, 1, 0], [3, 2, 0]], [[5, 0, 0], [5, 0, 0], [5, 0, 0]]])
    found = summarize_counts(counts, ["a", "b", "c"])
    assert found.pixels == pytest.approx(9 / 10)
    assert found.mean_iou == pytest.approx((8 / 9 + 1 / 2) / 2)
    assert found.per_class["c"] is None and found.per_class["a"]["iou"] == pytest.approx(8 / 9)
    assert found.pixels_interval == pytest.approx([4 / 5, 1])
