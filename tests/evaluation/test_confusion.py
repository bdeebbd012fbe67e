import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccsegformer.errors import DataError
from ccsegformer.evaluation import confusion
from ccsegformer.evaluation.confusion import compute_metrics, confusion_matrix

NAMES = tuple("abcde")


def brute_force(truth: list[int], prediction: list[int], k: int, ignore: int) -> dict[str, float]:
    """Compute the scores from sets of pixels, class by class, from their definitions."""
    pixels = [i for i, label in enumerate(truth) if label != ignore]
    ious, accuracies = {}, {}
    for label in range(k):
        true = {i for i in pixels if truth[i] == label}
        predicted = {i for i in pixels if prediction[i] == label}
        if true | predicted:
            ious[label] = len(true & predicted) / len(true | predicted)
        if true:
            accuracies[label] = len(true & predicted) / len(true)
    return {
        "mean_iou": sum(ious.values()) / len(ious),
        "devkit_mean_iou": sum(ious.values()) / k,
        "mean_accuracy": sum(accuracies.values()) / len(accuracies),
        "pixel_accuracy": sum(truth[i] == prediction[i] for i in pixels) / len(pixels),
    }


@settings(deadline=None)
@given(st.data())
def test_scores_follow_their_definitions(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 5))
    ignore = data.draw(st.sampled_from([k, 255]))
    labels = st.integers(0, k - 1)
    pairs = data.draw(st.lists(st.tuples(labels | st.just(ignore), labels), min_size=1, max_size=40))
    truth, prediction = map(list, zip(*pairs, strict=True))
    truth[0] = 0  # at least one labelled pixel
    matrix = confusion_matrix(torch.tensor(truth), torch.tensor(prediction, dtype=torch.uint8), k, ignore)
    metrics = compute_metrics(matrix, NAMES[:k]).to_dict()
    for name, expected in brute_force(truth, prediction, k, ignore).items():
        assert math.isclose(metrics[name], expected, abs_tol=1e-12), name


def test_the_matrix_has_a_row_for_each_true_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "_CHUNK", 4)
    truth = torch.tensor([[0, 0, 1], [2, 255, 0]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 2, 1], [1, 1, 2]])
    matrix = confusion_matrix(truth, prediction, 3, 255)
    assert matrix.dtype == torch.int64
    assert matrix.tolist() == [[1, 0, 2], [0, 1, 0], [0, 1, 0]]


def test_a_published_worked_example() -> None:
    # "a" has 3 of 4 pixels right, "b" 2 of 2; "c" occurs in neither truth nor prediction.
    metrics = compute_metrics(np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]), ("a", "b", "c"))
    assert metrics.mean_iou == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert metrics.devkit_mean_iou == pytest.approx((3 / 4 + 2 / 3) / 3)
    assert metrics.mean_accuracy == pytest.approx((3 / 4 + 1) / 2)
    assert metrics.pixel_accuracy == pytest.approx(5 / 6)
    assert metrics.per_class["a"] == {"iou": 0.75, "accuracy": 0.75, "pixels": 4}
    assert metrics.per_class["c"] == {"iou": None, "accuracy": None, "pixels": 0}


def test_a_class_that_is_only_predicted_lowers_the_mean() -> None:
    metrics = compute_metrics(torch.tensor([[3, 1], [0, 0]]), ("a", "b"))
    assert metrics.mean_iou == pytest.approx(3 / 8)
    assert metrics.mean_accuracy == pytest.approx(3 / 4)
    assert metrics.per_class["b"] == {"iou": 0.0, "accuracy": None, "pixels": 0}
    assert json.loads(json.dumps(metrics.to_dict(), allow_nan=False)) == metrics.to_dict()


def test_counts_beyond_32_bits() -> None:
    metrics = compute_metrics(torch.tensor([[2**40, 2**40], [0, 2**41]]), ("a", "b"))
    assert metrics.pixel_accuracy == 0.75


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DataError, match="no labelled pixel to score"):
        compute_metrics(torch.zeros(2, 2, dtype=torch.int64), ("a", "b"))
    with pytest.raises(ValueError, match="does not fit 3 classes"):
        compute_metrics(torch.ones(2, 2, dtype=torch.int64), ("a", "b", "c"))
    with pytest.raises(ValueError, match=r"truth is \(2, 2\) but prediction is \(4,\)"):
        confusion_matrix(torch.zeros(2, 2), torch.zeros(4), 2, 255)
    for truth, prediction, message in (
        ([0, 2], [0, 0], "true labels 0 to 2"),
        ([0, -1], [0, 0], "true labels -1 to 0"),
        ([255, 0], [2, 0], "predicted labels 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            confusion_matrix(torch.tensor(truth), torch.tensor(prediction), 2, 255)
