"""How well a student agrees with its teacher on images without labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ccsegformer.config.protocol import DEFAULT, EvaluationProtocol, WindowSection
from ccsegformer.conversion.images import read_part
from ccsegformer.evaluation.bootstrap import (
    Counts,
    class_counts,
    class_iou_from_counts,
    interval,
    mean_iou_from_counts,
    resample_images,
)
from ccsegformer.evaluation.confusion import confusion_matrix
from ccsegformer.labelling.labeller import predict_labels
from ccsegformer.labelling.preprocess import preprocessing_of
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.one_label import class_count


class Agreement(NamedTuple):
    """Agreement of labels with a teacher's, from 0 to 1, with 95% intervals over resampled images.

    Attributes:
        pixels: Share of the pixels with the same label.
        mean_iou: Mean IoU over the classes in either one's labels, with the teacher's as truth.
        per_class: IoU of each class, None for one that neither finds.
        pixels_interval, mean_iou_interval: Intervals [low, high].
        images: Number of images.
    """

    pixels: float
    pixels_interval: list[float]
    mean_iou: float
    mean_iou_interval: list[float]
    per_class: dict[str, dict[str, Any] | None]
    images: int


class HeldBack:
    """Images held back, with the teacher's labels.

    Args:
        teacher: Model whose labels are taken for the truth.
        files: Images; of those above 2048 pixels, the middle is taken.
        window: Side of the windows in which the teacher sees the images; None for the whole image.
    """

    def __init__(
        self,
        teacher: CrissCrossSegformerForSemanticSegmentation,
        files: Sequence[Path],
        window: int | None = None,
    ) -> None:
        self.files = tuple(files)
        self.preprocessing = preprocessing_of(teacher.config)
        names = teacher.config.id2label
        self.names = [str(names[label]) for label in sorted(names)]
        if teacher.config.num_labels == 1:
            self.names.insert(0, "background")
        self.labels = [
            predict_labels(teacher, image, _protocol_of_window(window), name=str(path))
            for path, image in zip(self.files, map(self._read, self.files), strict=True)
        ]

    def _read(self, path: Path) -> Tensor:
        return read_part(path, self.preprocessing)

    def compare(self, student: CrissCrossSegformerForSemanticSegmentation) -> Agreement:
        """Label the images by the student, whole, and compare."""
        classes = class_count(student.config.num_labels) or 0
        counts = []
        for path, truth in zip(self.files, self.labels, strict=True):
            labels = predict_labels(student, self._read(path), name=str(path))
            matrix = confusion_matrix(truth, labels, classes, ignore_index=-1)
            counts.append(class_counts(matrix.cpu().numpy()))
        return summarize_counts(np.stack(counts), self.names)


def summarize_counts(counts: Counts, names: Sequence[str]) -> Agreement:
    """Summarise the counts (images, 3, K) of images."""
    resampled, total = resample_images(counts), counts.sum(axis=0)
    ious, resampled_ious = class_iou_from_counts(total), class_iou_from_counts(resampled)
    per_class: dict[str, dict[str, Any] | None] = {
        name: None if np.isnan(iou) else {"iou": float(iou), "interval": interval(resampled_ious[:, label])}
        for label, (name, iou) in enumerate(zip(names, ious, strict=True))
    }
    return Agreement(
        pixels=float(total[0].sum() / total[1].sum()),
        pixels_interval=interval(resampled[:, 0].sum(axis=1) / resampled[:, 1].sum(axis=1)),
        mean_iou=float(mean_iou_from_counts(total)),
        mean_iou_interval=interval(mean_iou_from_counts(resampled)),
        per_class=per_class,
        images=len(counts),
    )


def _protocol_of_window(window: int | None) -> EvaluationProtocol:
    return (
        DEFAULT
        if window is None
        else EvaluationProtocol(window=WindowSection(size=window, stride=window // 2))
    )
