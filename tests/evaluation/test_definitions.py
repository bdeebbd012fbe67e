"""Compare the scores with independent code: the SceneParse150 devkit's and torchmetrics'."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from ccsegformer.evaluation.confusion import compute_metrics, confusion_matrix, mean_iou

Maps = list[tuple[np.ndarray, np.ndarray]]
IGNORED = 255


@st.composite
def maps(draw: st.DrawFn) -> tuple[int, Maps]:
    """Draw truths and predictions of several images, often with absent classes and ignored pixels."""
    k = draw(st.integers(2, 150))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    few = generator.integers(0, k, size=draw(st.integers(1, 8)))  # the classes that occur
    pairs = []
    for _ in range(draw(st.integers(1, 4))):
        shape = tuple(generator.integers(1, 12, size=2))
        truth, prediction = generator.choice(few, shape), generator.choice(few, shape)
        truth[generator.random(shape) < draw(st.sampled_from([0, 0.3, 1]))] = IGNORED
        pairs.append((truth, prediction))
    pairs[0][0][0, 0] = few[0]  # at least one labelled pixel
    return k, pairs


def matrix_of(k: int, pairs: Maps) -> torch.Tensor:
    matrices = [confusion_matrix(torch.from_numpy(t), torch.from_numpy(p), k, IGNORED) for t, p in pairs]
    return torch.stack(matrices).sum(dim=0)


def devkit(k: int, pairs: Maps) -> tuple[float, float]:
    """Compute mean IoU and pixel accuracy pixel by pixel.

    Labels are 1 to K; 0 is unlabelled, and what is predicted there counts for nothing. Areas are summed over
    the images, and an absent class has an IoU of 0.
    """
    intersection, union = [0] * (k + 1), [0] * (k + 1)
    right = labelled = 0
    for truth, prediction in pairs:
        for true, predicted in zip(truth.flatten().tolist(), prediction.flatten().tolist(), strict=True):
            true, predicted = (0 if true == IGNORED else true + 1), predicted + 1
            if true == 0:
                continue
            labelled += 1
            right += true == predicted
            intersection[true] += true == predicted
            for label in {true, predicted}:
                union[label] += 1
    ious = [intersection[label] / max(union[label], 1) for label in range(1, k + 1)]
    return sum(ious) / k, right / labelled


@settings(deadline=None)
@given(maps())
def test_the_devkit_s_definition(drawn: tuple[int, Maps]) -> None:
    k, pairs = drawn
    metrics = compute_metrics(matrix_of(k, pairs), [str(label) for label in range(k)])
    expected_iou, expected_accuracy = devkit(k, pairs)
    assert metrics.devkit_mean_iou == pytest.approx(expected_iou, abs=1e-12)
    assert metrics.pixel_accuracy == pytest.approx(expected_accuracy, abs=1e-12)


@settings(deadline=None)
@given(maps())
def test_torchmetrics_jaccard_index(drawn: tuple[int, Maps]) -> None:
    """Its macro average excludes absent classes like ours; per class it gives 0 where we give None."""
    k, pairs = drawn
    each, macro = (MulticlassJaccardIndex(k, average=a, ignore_index=IGNORED) for a in ("none", "macro"))
    for truth, prediction in pairs:
        for metric in (each, macro):
            metric.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    metrics = compute_metrics(matrix_of(k, pairs), [str(label) for label in range(k)])
    assert metrics.mean_iou == pytest.approx(macro.compute().item(), abs=1e-6)
    ious = [row["iou"] or 0.0 for row in metrics.per_class.values()]
    assert ious == pytest.approx(each.compute().tolist(), abs=1e-6)


@settings(deadline=None)
@given(maps())
def test_an_image_s_own_mean_iou(drawn: tuple[int, Maps]) -> None:
    k, pairs = drawn
    for truth, prediction in pairs:
        own = mean_iou(matrix_of(k, [(truth, prediction)]))
        labelled = truth != IGNORED
        ious = []
        for label in set(truth[labelled]) | set(prediction[labelled]):
            true, predicted = (truth == label) & labelled, (prediction == label) & labelled
            ious.append((true & predicted).sum() / (true | predicted).sum())
        assert own == (pytest.approx(np.mean(ious)) if ious else None)
