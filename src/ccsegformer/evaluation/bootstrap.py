"""Intervals of a mean IoU, by resampling images.

Each image is stored as three counts per class (correct, true and predicted pixels), which determine the mean
IoU of any set of images. The bootstrap resamples images and recomputes the data set's mean IoU. It never
averages the images' own IoUs, which would be a different measure.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000
BOOTSTRAP_SEED = 0
FEWEST_IMAGES = 10
"""Fewest images for which intervals are given and a model can be called better."""

Counts = NDArray[np.int64]  # (..., 3, classes): correct, true and predicted pixels


def class_counts(confusion: NDArray[np.int64]) -> Counts:
    """Reduce a confusion matrix (K, K), with true classes in rows, to the counts (3, K)."""
    return np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)])


def class_iou_from_counts(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """Return the IoU (..., K) of each class of counts (..., 3, K); NaN for one that does not occur."""
    correct, truth, predicted = np.moveaxis(counts.astype(np.float64), -2, 0)
    with np.errstate(invalid="ignore"):
        return correct / (truth + predicted - correct)


def mean_iou_from_counts(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """Return the mean IoU (...) of counts (..., 3, K) over the classes that occur; NaN if none does."""
    iou = class_iou_from_counts(counts)
    present = ~np.isnan(iou)
    with np.errstate(invalid="ignore"):
        return np.where(present, iou, 0).sum(axis=-1) / present.sum(axis=-1)


def resample_images(counts: Counts) -> Counts:
    """Return the counts (RESAMPLES, 3, K) of resampled data sets, from those of images (images, 3, K).

    The images drawn depend on their number alone, so that models are compared on the same ones.
    """
    images = len(counts)
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = generator.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return np.tensordot(drawn, counts, axes=1)


def bootstrap(counts: Mapping[str, Counts]) -> dict[str, NDArray[np.float64]]:
    """Return the mean IoU of each resampled data set (RESAMPLES,) by model.

    Every model is scored on the same resampled images, and each value is the mean over the seeds.

    Args:
        counts: Counts (seeds, images, 3, K) by model.
    """
    return {
        model: np.mean([mean_iou_from_counts(resample_images(run)) for run in runs], axis=0)
        for model, runs in counts.items()
    }


def interval(resampled: NDArray[np.float64]) -> list[float]:
    """Return the percentile interval [low, high] of resampled values, ignoring NaN."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return [float(low), float(high)]
