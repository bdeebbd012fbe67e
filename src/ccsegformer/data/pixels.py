"""From the values of an image to what a network takes: normalised float32 of at least 32 pixels a side."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images, RGB in 0-1


IMAGE_STD = (0.229, 0.224, 0.225)


MEAN_COLOR = tuple(round(255 * mean) for mean in IMAGE_MEAN)


class BandStatistics(NamedTuple):
    """Of each band, in the units of the stored values."""

    means: tuple[float, ...]
    stds: tuple[float, ...]


def normalize(image: torch.Tensor, statistics: BandStatistics | None = None) -> torch.Tensor:
    """Turn an image (bands, H, W) into the float32 that networks take: (values - means) / stds.

    Without `statistics`, 8-bit RGB by those of ImageNet's images.
    """
    means, stds = statistics or (IMAGE_MEAN, IMAGE_STD)
    mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (means, stds))
    pixels = image.as_subclass(torch.Tensor).to(
        torch.float32, memory_format=torch.contiguous_format, copy=True
    )
    if statistics is None:
        pixels.div_(255)
    return pixels.sub_(mean).div_(std)


MINIMUM_SIDE = 32  # SegFormer's coarsest stage has a position for every 32 pixels


def pad_to(tensor: torch.Tensor, height: int, width: int, value: float) -> torch.Tensor:
    """Pad (..., H, W) with `value` below and to the right, up to `height` and `width`."""
    right, below = max(0, width - tensor.shape[-1]), max(0, height - tensor.shape[-2])
    return F.pad(tensor, (0, right, 0, below), value=value) if right or below else tensor
