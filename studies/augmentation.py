"""Augmentation for the studies: the university report's, with its three defects (D7, D8 and D9) as flags."""

from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Mask

from ccsegformer.data.transforms import (
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Invert,
    RandomCrop,
    RandomResize,
)


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of section 4.2 of the report, at a smaller size.

    A last crop, applied to every image, gives all images in a batch the same size.

    Attributes:
        size: side of the crops, in pixels.
        one_coin: D7, one random draw for all transforms and a second one in the inversion.
        masks_stay: D8, flip and crop the image but not the mask.
        area_crops: D9, crop a share of the area and squash it to a square, instead of resizing.
    """

    size: int
    one_coin: bool = False
    masks_stay: bool = False
    area_crops: bool = False

    def __call__(self, image: Any, mask: Any, generator: torch.Generator, **padding: Any) -> Any:
        """Augment an image and its mask; `padding` is passed on to the package's transforms."""
        chain: list[Any] = [HorizontalFlip, Invert, Grayscale, GaussianBlur]
        chain = [transform(probability=1) for transform in chain]
        if self.area_crops:
            chain += [AreaCrop(self.size), AreaCrop(2 * self.size)]
        else:
            chain += [
                RandomResize(probability=1),
                RandomCrop(probability=1, sizes=(self.size, 2 * self.size)),
            ]
        coins = torch.rand(len(chain) + 1, generator=generator).tolist()
        for coin, transform in zip(coins, chain, strict=False):
            if (coins[0] if self.one_coin else coin) >= 0.25:
                continue
            if self.one_coin and isinstance(transform, Invert) and coins[-1] >= 0.5:
                continue
            moved = transform(image, mask, generator, **padding)
            stays = self.masks_stay and isinstance(transform, HorizontalFlip | RandomCrop | AreaCrop)
            image, mask = moved[0], mask if stays else moved[1]
        if self.area_crops or mask.shape != image.shape[1:]:
            size = [self.size] * 2 if self.area_crops else list(image.shape[1:])
            image, mask = F.resize(image, size), F.resize(mask, size, F.InterpolationMode.NEAREST_EXACT)
        last = RandomCrop(probability=1, sizes=(self.size,))
        return last(image, Mask(mask), generator, **padding)


@dataclass(frozen=True)
class AreaCrop:
    """Crop 0.5 to 2 times the area (at most the whole) and squash it to a square, by torchvision's rule."""

    size: int

    def __call__(self, image: Any, mask: Any, generator: torch.Generator, **_: Any) -> Any:
        """Crop an image and its mask; nothing needs padding."""
        height, width = image.shape[1:]
        window = (0, 0, height, width)
        for area, shape, top, left in torch.rand(10, 4, generator=generator).tolist():
            pixels, aspect = (0.5 + 1.5 * area) * height * width, (4 / 3) ** (2 * shape - 1)
            h, w = round((pixels / aspect) ** 0.5), round((pixels * aspect) ** 0.5)
            if h <= height and w <= width:
                window = (int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)
                break
        size, nearest = [self.size] * 2, F.InterpolationMode.NEAREST_EXACT
        return F.resized_crop(image, *window, size), F.resized_crop(mask, *window, size, nearest)
