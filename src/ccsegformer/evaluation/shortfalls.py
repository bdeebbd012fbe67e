"""Shortfalls: how much each class lowers the mean IoU, and the class it is most confused with."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ccsegformer.evaluation.confusion import compute_metrics


class ClassShortfall(NamedTuple):
    """Shortfall of one class of a confusion matrix.

    A wrong pixel lies in the unions of its true and its predicted class. So the shares of a class's union
    that are confused with the other classes add up to 1 - IoU.
    """

    label: int
    name: str
    iou: float
    accuracy: float | None  # None if the class is not in truth
    pixels: int  # in truth
    shortfall: float  # (1 - IoU) / number of scored classes; the sum over classes is 1 - mean IoU
    confused_with: str | None  # class that takes most of the union; None if none does
    confused_share: float  # share of the union


def rank_shortfalls(
    matrix: torch.Tensor | Sequence[Sequence[int]], names: Sequence[str]
) -> list[ClassShortfall]:
    """Return the classes in truth or prediction of a confusion matrix (K, K), largest shortfall first.

    Rows are truth.

    Raises:
        DataError, ValueError: As `compute_metrics`.
    """
    counts: NDArray[np.int64] = np.asarray(matrix, dtype=np.int64)
    rows = compute_metrics(counts, names).per_class
    wrong = counts + counts.T
    np.fill_diagonal(wrong, 0)
    scored = [label for label, name in enumerate(names) if rows[name]["iou"] is not None]
    shortfalls = []
    for label in scored:
        other = int(wrong[label].argmax())
        union = wrong[label].sum() + counts[label, label]
        row = rows[names[label]]
        iou = float(row["iou"] or 0)
        shortfalls.append(
            ClassShortfall(
                label=label,
                name=names[label],
                iou=iou,
                accuracy=row["accuracy"],
                pixels=int(row["pixels"] or 0),
                shortfall=(1 - iou) / len(scored),
                confused_with=names[other] if wrong[label, other] else None,
                confused_share=float(wrong[label, other] / union),
            )
        )
    return sorted(shortfalls, key=lambda of: (-of.shortfall, of.label))
