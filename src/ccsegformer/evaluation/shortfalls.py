"""Where the mean IoU is lost: what each class takes from a perfect score, and to which class."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ccsegformer.evaluation.confusion import compute_metrics


class ClassShortfall(NamedTuple):
    """One class of a confusion matrix.

    A wrong pixel is in the unions of two classes, the true and the predicted one, so the shares of its union
    that a class loses to each of the others add up to 1 - IoU.
    """

    label: int
    name: str
    iou: float
    accuracy: float | None  # None where no pixel of truth has the class
    pixels: int  # of truth
    shortfall: float  # (1 - IoU) / classes scored: these add up to 1 - mean IoU
    confused_with: str | None  # the class to which most of the union is lost; None where nothing is
    confused_share: float  # of the union


def rank_shortfalls(
    matrix: torch.Tensor | Sequence[Sequence[int]], names: Sequence[str]
) -> list[ClassShortfall]:
    """The classes in truth or prediction of a confusion matrix (K, K), rows truth, the greatest loss first.

    Raises:
        DataError, ValueError: as `compute_metrics`.
    """
    counts: NDArray[np.int64] = np.asarray(matrix, dtype=np.int64)
    rows = compute_metrics(counts, names).per_class
    wrong = counts + counts.T
    np.fill_diagonal(wrong, 0)
    scored = [label for label, name in enumerate(names) if rows[name]["iou"] is not None]
    losses = []
    for label in scored:
        other = int(wrong[label].argmax())
        union = wrong[label].sum() + counts[label, label]
        row = rows[names[label]]
        iou = float(row["iou"] or 0)
        losses.append(
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
    return sorted(losses, key=lambda of: (-of.shortfall, of.label))
