"""Scores of teacher and student on labelled images, with the interval of their difference."""

from pathlib import Path
from typing import Any

from ccsegformer.data.labels import Classes, check_class_order
from ccsegformer.errors import DataError
from ccsegformer.evaluation.bootstrap import (
    FEWEST_IMAGES,
    Counts,
    interval,
    mean_iou_from_counts,
    resample_images,
)
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from ccsegformer.sources import open_dataset

SPLIT = "validation"


def check_labelled(data: str | Path, classes: Classes, checkpoint: str) -> None:
    """Check that a data set has the classes of a model.

    Raises:
        DataError: It cannot be opened, or has another number of classes or another order.
    """
    found = open_dataset(data, SPLIT).classes.names
    if len(found) != len(classes):
        raise DataError(f"{data}: {len(found)} classes, but {checkpoint} has {len(classes)}")
    check_class_order(classes.names, found, checkpoint, str(data))


def mean_iou_on(model: CrissCrossSegformerForSemanticSegmentation, data: str | Path) -> float:
    """Return the mean IoU of a model on whole images of a data set."""
    return evaluate(model, open_dataset(data, SPLIT), engine="torch").metrics.mean_iou


def compare_scores(
    teacher: CrissCrossSegformerForSemanticSegmentation,
    student: CrissCrossSegformerForSemanticSegmentation,
    data: str | Path,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Score both models on whole images and return their mean IoU, and the student's minus the teacher's.

    The interval of the difference is from resampled images; None for fewer than 10.

    Raises:
        DataError: The data cannot be used.
    """
    counts = [_counts(model, data, progress) for model in (teacher, student)]
    scores = [float(mean_iou_from_counts(of.sum(axis=0))) for of in counts]
    bounds = None
    if len(counts[0]) >= FEWEST_IMAGES:
        before, after = (mean_iou_from_counts(resample_images(of)) for of in counts)
        bounds = interval(after - before)
    return {
        "data": str(data),
        "images": len(counts[0]),
        "teacher": scores[0],
        "student": scores[1],
        "difference": scores[1] - scores[0],
        "interval": bounds,
    }


def _counts(model: CrissCrossSegformerForSemanticSegmentation, data: str | Path, progress: bool) -> Counts:
    """Return the counts (images, 3, K) of a model."""
    counts = evaluate(model, open_dataset(data, SPLIT), engine="torch", progress=progress).counts
    assert counts is not None
    return counts
