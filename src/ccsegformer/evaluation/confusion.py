"""The confusion matrix and the scores derived from it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ccsegformer.errors import DataError

_CHUNK = 2**20  # pixels counted at a time, so that their int32 indices stay in the cache


@dataclass(frozen=True)
class Metrics:
    """Scores from 0 to 1 over all labelled pixels of a data set."""

    mean_iou: float  # over the classes in truth or prediction
    mean_accuracy: float  # recall, over the classes in truth
    pixel_accuracy: float
    devkit_mean_iou: float  # over all classes; absent ones score 0, as in the SceneParse150 devkit
    per_class: dict[str, dict[str, float | int | None]]  # iou, accuracy (None where undefined), true pixels

    def to_dict(self) -> dict[str, Any]:
        """Return the scores for JSON."""
        return asdict(self)


def confusion_matrix(
    truth: torch.Tensor, prediction: torch.Tensor, num_classes: int, ignore_index: int
) -> torch.Tensor:
    """Count pixels by true class (rows) and predicted class (columns): int64 (K, K).

    Pixels whose true label is `ignore_index` are not counted. The matrices of several images add up.

    Args:
        truth: Integer labels of any shape.
        prediction: Integer labels of the same shape, in [0, K).
        num_classes: Number of classes, K.
        ignore_index: Label in `truth` that is not scored.

    Raises:
        ValueError: The shapes differ, or a label is neither a class nor the ignore index.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {tuple(truth.shape)} but prediction is {tuple(prediction.shape)}")
    cells = num_classes * num_classes
    counts = torch.zeros(cells + 1, dtype=torch.int64, device=truth.device)
    pairs = zip(truth.flatten().split(_CHUNK), prediction.flatten().split(_CHUNK), strict=True)
    for true, predicted in pairs:
        true, predicted = true.as_subclass(torch.Tensor).int(), predicted.as_subclass(torch.Tensor).int()
        labelled = true != ignore_index
        for labels, kind in ((true[labelled], "true"), (predicted, "predicted")):
            if labels.numel() and not 0 <= labels.min() <= labels.max() < num_classes:
                raise ValueError(f"{kind} labels {labels.min()} to {labels.max()} exceed 0-{num_classes - 1}")
        cell = torch.where(
            labelled, true * num_classes + predicted, cells
        )  # the last cell counts ignored pixels
        counts += torch.bincount(cell, minlength=cells + 1)
    return counts[:cells].view(num_classes, num_classes)


def mean_iou(matrix: torch.Tensor | NDArray[np.integer]) -> float | None:
    """Return the mean IoU over the classes in truth or prediction; None for an empty matrix (K, K)."""
    iou, union = _iou(np.asarray(matrix, dtype=np.int64))
    return float(iou[union > 0].mean()) if union.any() else None


def compute_metrics(matrix: torch.Tensor | NDArray[np.integer], names: Sequence[str]) -> Metrics:
    """Compute the scores of a confusion matrix (K, K), with truth in rows, for the classes `names`.

    The intersection over union of a class is TP / (TP + FP + FN), its accuracy TP / (TP + FN).

    Raises:
        DataError: The matrix is empty.
        ValueError: The number of names is not K.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"a matrix of {counts.shape} does not fit {len(names)} classes")
    if counts.sum() == 0:
        raise DataError("no labelled pixel to score: all masks hold only the ignore index")
    iou, union = _iou(counts)
    hits, true = counts.diagonal(), counts.sum(axis=1)
    accuracy = hits / np.maximum(true, 1)
    return Metrics(
        mean_iou=float(iou[union > 0].mean()),
        mean_accuracy=float(accuracy[true > 0].mean()),
        pixel_accuracy=float(hits.sum() / counts.sum()),
        devkit_mean_iou=float(iou.mean()),
        per_class={
            name: {
                "iou": float(iou[label]) if union[label] else None,
                "accuracy": float(accuracy[label]) if true[label] else None,
                "pixels": int(true[label]),
            }
            for label, name in enumerate(names)
        },
    )


def _iou(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the IoU of each class, 0 if it is in neither truth nor prediction, and its union in pixels."""
    hits = counts.diagonal()
    union = counts.sum(axis=1) + counts.sum(axis=0) - hits
    return hits / np.maximum(union, 1), union
