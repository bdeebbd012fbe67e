"""Normalisation and padding of images, and the statistics of their bands."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images, RGB in 0-1
IMAGE_STD = (0.229, 0.224, 0.225)
MEAN_COLOR = tuple(round(255 * mean) for mean in IMAGE_MEAN)
MINIMUM_SIDE = 32  # SegFormer's coarsest stage has one position for every 32 pixels


class BandStatistics(NamedTuple):
    """Mean and standard deviation of each band, in the units of the stored values."""

    means: tuple[float, ...]
    stds: tuple[float, ...]


def measure_bands(samples: Iterable[NDArray[np.generic]]) -> BandStatistics | None:
    """Measure the mean and the standard deviation of each band over arrays (bands, N) of pixels.

    The arrays are merged one by one (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979). Return None if there is no pixel.
    """
    count, mean, squares = 0, np.zeros(1), np.zeros(1)  # broadcast to the number of bands
    for sample in samples:
        pixels = sample.astype(np.float64)
        if not pixels.size:
            continue
        more, their_mean = pixels.shape[1], pixels.mean(axis=1)
        apart = their_mean - mean
        squares = squares + ((pixels - their_mean[:, None]) ** 2).sum(axis=1)
        squares += apart**2 * count * more / (count + more)
        mean = mean + apart * more / (count + more)
        count += more
    if not count:
        return None
    deviation = np.sqrt(squares / count)
    deviation[deviation == 0] = 1  # a constant band carries no information, whatever its scale
    means: list[float] = mean.tolist()
    stds: list[float] = deviation.tolist()
    return BandStatistics(tuple(means), tuple(stds))


def spread(count: int, most: int) -> list[int]:
    """Choose up to `most` of `count` indices, evenly spread, the first and the last among them."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()
    return chosen


def normalize(image: torch.Tensor, statistics: BandStatistics | None = None) -> torch.Tensor:
    """Normalise an image (bands, H, W) to float32: (values - means) / stds.

    Without `statistics`, the image is 8-bit RGB and ImageNet's are used.
    """
    means, stds = statistics or (IMAGE_MEAN, IMAGE_STD)
    mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (means, stds))
    pixels = image.as_subclass(torch.Tensor).to(
        torch.float32, memory_format=torch.contiguous_format, copy=True
    )
    if statistics is None:
        pixels.div_(255)
    return pixels.sub_(mean).div_(std)


def pad_to(tensor: torch.Tensor, height: int, width: int, value: float) -> torch.Tensor:
    """Pad (..., H, W) with `value` at the bottom and on the right, up to `height` and `width`."""
    right, below = max(0, width - tensor.shape[-1]), max(0, height - tensor.shape[-2])
    return F.pad(tensor, (0, right, 0, below), value=value) if right or below else tensor
