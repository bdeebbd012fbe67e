"""Joint augmentations of an image and its mask.

They are those of section 4.2 of the university report and of SegFormer's training on ADE20K. Each has its own
probability. A transform draws only from the given generator, and always the same number of values, whatever
its settings and whether or not it acts: changing one transform does not change what the others draw.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image, Mask

from ccsegformer.data.pixels import MEAN_COLOR

BRIGHTNESS = 32  # largest change of 8-bit values, up or down
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 0.1  # largest rotation of the hue, as a fraction of the circle
CROP_RETRIES = 10


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} exceeds the upper bound {bounds[1]}")
    return bounds


Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_rising)]


class Padding(NamedTuple):
    """Fill values for an image that is too small."""

    label: int
    color: tuple[float, ...] = MEAN_COLOR


class _Transform(BaseModel):
    """Base of the transforms of an image, uint8 or float32 (bands, H, W), and its mask, integer (H, W)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    draws: ClassVar[int] = 0  # number of values, uniform in [0, 1), that `_apply` takes
    needs_rgb: ClassVar[bool] = False  # whether images must be 8-bit RGB (3, H, W)

    probability: float = Field(default=0.25, ge=0, le=1)

    def __call__(
        self,
        image: Image,
        mask: Mask,
        generator: torch.Generator,
        *,
        ignore_index: int = 255,
        color: tuple[float, ...] = MEAN_COLOR,
    ) -> tuple[Image, Mask]:
        """Transform image and mask, or return both unchanged, as `generator` decides.

        The mask is padded with `ignore_index`, and the image with `color`, a value for each band.
        """
        coin, *draws = torch.rand(1 + self.draws, dtype=torch.float64, generator=generator).tolist()
        if coin >= self.probability:
            return image, mask
        return self._apply(image, mask, draws, Padding(ignore_index, color))

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        raise NotImplementedError


class HorizontalFlip(_Transform):
    """Mirror left and right."""

    name: Literal["horizontal_flip"] = "horizontal_flip"

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        return F.horizontal_flip(image), F.horizontal_flip(mask)


class VerticalFlip(_Transform):
    """Mirror top and bottom."""

    name: Literal["vertical_flip"] = "vertical_flip"

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        return F.vertical_flip(image), F.vertical_flip(mask)


class Rotate90(_Transform):
    """Rotate by 90, 180 or 270 degrees with equal probability, without interpolation."""

    name: Literal["rotate90"] = "rotate90"
    draws: ClassVar[int] = 1

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        turns = 1 + int(3 * draws[0])
        return Image(image.rot90(turns, (1, 2))), Mask(mask.rot90(turns))


class Invert(_Transform):
    """Replace each colour by its negative."""

    name: Literal["invert"] = "invert"
    needs_rgb: ClassVar[bool] = True

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        return F.invert(image), mask


class Grayscale(_Transform):
    """Convert to grey, in three equal channels."""

    name: Literal["grayscale"] = "grayscale"
    needs_rgb: ClassVar[bool] = True

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        return F.rgb_to_grayscale(image, num_output_channels=3), mask


class GaussianBlur(_Transform):
    """Blur with a Gaussian whose standard deviation, in pixels, is uniform in `sigma`."""

    name: Literal["gaussian_blur"] = "gaussian_blur"
    sigma: Range = (0.1, 2.0)
    draws: ClassVar[int] = 1

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        sigma = _interpolate(self.sigma, draws[0])
        # A Gaussian is negligible beyond three sigma; reflected borders must be narrower than the image.
        radius = math.ceil(3 * sigma)
        width, height = (2 * min(radius, side - 1) + 1 for side in (image.shape[2], image.shape[1]))
        return F.gaussian_blur(image, kernel_size=[width, height], sigma=[sigma, sigma]), mask


class PhotometricDistortion(_Transform):
    """Change brightness, contrast, saturation and hue, each with probability 1/2, as MMSegmentation does.

    Brightness adds -32 to 32 to the 8-bit values. Contrast multiplies them by 0.5 to 1.5, either before or
    after the colour changes, with equal probability. Saturation, as in HSV, is also multiplied by 0.5 to 1.5.
    The hue is rotated by up to 36 degrees. torchvision's RandomPhotometricDistort differs: it multiplies for
    brightness, and blends with the image's mean grey for contrast and with each pixel's grey for saturation.
    """

    name: Literal["photometric_distortion"] = "photometric_distortion"
    needs_rgb: ClassVar[bool] = True
    draws: ClassVar[int] = 9

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        brightness, contrast, contrast_first, saturation, hue = (draw < 0.5 for draw in draws[:5])
        shift, gain = _interpolate((-BRIGHTNESS, BRIGHTNESS), draws[5]), _interpolate(CONTRAST, draws[6])
        if brightness:
            image = Image((image + shift).clamp_(0, 255).to(torch.uint8))
        if contrast and contrast_first:
            image = F.adjust_brightness(image, gain)
        if saturation:
            image = _saturate(image, _interpolate(SATURATION, draws[7]))
        if hue:
            image = F.adjust_hue(image, _interpolate((-HUE, HUE), draws[8]))
        if contrast and not contrast_first:
            image = F.adjust_brightness(image, gain)
        return image, mask


class RandomResize(_Transform):
    """Scale both sides by a factor uniform in `ratio`; the mask uses nearest-neighbour interpolation.

    With `scale`, two numbers of pixels, the factor is relative to the largest size that fits: a long side of
    at most the larger number and a short side of at most the smaller.
    """

    name: Literal["random_resize"] = "random_resize"
    ratio: Range = (0.5, 2.0)
    scale: tuple[PositiveInt, PositiveInt] | None = None
    draws: ClassVar[int] = 1

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        ratio = _interpolate(self.ratio, draws[0])
        if self.scale:
            ratio *= min(
                limit / side for limit, side in zip(sorted(self.scale), sorted(image.shape[1:]), strict=True)
            )
        size = [max(1, round(ratio * side)) for side in image.shape[1:]]
        # "Nearest exact" samples at pixel centres, as bilinear does; plain "nearest" is shifted.
        labels = F.resize(mask, size, interpolation=InterpolationMode.NEAREST_EXACT)
        if size == [1, 1] and image.dtype == torch.uint8:  # PyTorch's 8-bit kernel cannot output one pixel
            pixel = F.resize(image.float(), size, antialias=True).round().to(torch.uint8)
            return Image(pixel), labels
        return F.resize(image, size, antialias=True), labels


class RandomCrop(_Transform):
    """Crop a square at a random position; its side is one of `sizes`, with equal probability.

    A side shorter than the square is padded, at random before and after it: the image with the mean colour,
    ImageNet's or the bands' own, which is about zero after normalisation; the mask with `ignore_index`.
    Without `pad` it stays short, and the batch pads it to the largest, at the bottom and on the right.

    With `max_class_share`, the position is drawn again, up to ten times, while one class has at least that
    share of the labelled pixels or no pixel is labelled (`cat_max_ratio` in MMSegmentation).
    """

    name: Literal["random_crop"] = "random_crop"
    sizes: tuple[PositiveInt, ...] = Field(default=(512, 1024), min_length=1)
    max_class_share: float | None = Field(default=None, gt=0, le=1)
    pad: bool = True
    draws: ClassVar[int] = 3

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        height, width = image.shape[1:]
        size = self.sizes[int(draws[0] * len(self.sizes))]
        places = [draws[1:]]
        if self.max_class_share is not None:
            # Derive further positions from the first, so that the number of draws stays the same.
            further = torch.Generator().manual_seed(int(draws[1] * 2**53))
            places += torch.rand(CROP_RETRIES, 2, dtype=torch.float64, generator=further).tolist()
        for down, right in places:
            top, above = _place_crop(size, height, down)
            left, before = _place_crop(size, width, right)
            window = (top, left, min(size, height), min(size, width))
            cut = F.crop(mask, *window)
            if self.max_class_share is None or _largest_share(cut, padding.label) < self.max_class_share:
                break
        image, mask = F.crop(image, *window), cut
        if not self.pad or (height >= size and width >= size):
            return image, mask
        if padding.label > 255 and mask.dtype == torch.uint8:
            mask = Mask(mask.to(torch.int32))
        sides = [before, above, max(0, size - width) - before, max(0, size - height) - above]
        return F.pad(image, sides, fill=list(padding.color)), F.pad(mask, sides, fill=padding.label)


Transform = Annotated[
    HorizontalFlip
    | VerticalFlip
    | Rotate90
    | Invert
    | Grayscale
    | GaussianBlur
    | PhotometricDistortion
    | RandomResize
    | RandomCrop,
    Field(discriminator="name"),
]


def apply_transforms(
    transforms: Sequence[Transform],
    image: Image,
    mask: Mask,
    generator: torch.Generator,
    *,
    ignore_index: int,
    color: tuple[float, ...] = MEAN_COLOR,
) -> tuple[Image, Mask]:
    """Apply transforms in order to an image, uint8 or float32 (bands, H, W), and its mask.

    Masks are padded with `ignore_index`, and images with `color`.
    """
    for transform in transforms:
        image, mask = transform(image, mask, generator, ignore_index=ignore_index, color=color)
    return image, mask


def window_size(transforms: Sequence[Transform], default: int) -> int:
    """Return the side, in pixels, of the window that fills the largest crop after the smallest resize.

    Without a crop, return `default`.
    """
    size = None
    for transform in reversed(transforms):
        if isinstance(transform, RandomCrop):
            size = max(transform.sizes)
        elif isinstance(transform, RandomResize) and size is not None and transform.scale is None:
            size = math.ceil(size / min(1.0, transform.ratio[0]))
    return size or default


def _interpolate(bounds: tuple[float, float], draw: float) -> float:
    low, high = bounds
    return low + draw * (high - low)


def _place_crop(size: int, length: int, draw: float) -> tuple[int, int]:
    """Return (start of a window of `size` in a side of `length`, padding before a side that is shorter)."""
    start = int(draw * (abs(length - size) + 1))
    return (start, 0) if length >= size else (0, start)


def _saturate(image: Image, factor: float) -> Image:
    """Multiply the HSV saturation, (largest - smallest) / largest of R, G and B, by `factor`, up to 1.

    Value and hue do not change. So the largest channel stays, and the other channels' distances to it are
    multiplied.
    """
    smallest, largest = (extreme.float() for extreme in torch.aminmax(image.as_subclass(torch.Tensor), dim=0))
    # The factor at which saturation reaches 1. For grey pixels any factor will do: the distances are 0.
    factors = (largest / (largest - smallest).clamp_(min=1)).clamp_(max=factor)
    return Image((largest - factors * (largest - image)).round_().to(torch.uint8))


def _largest_share(mask: Mask, ignore_index: int) -> float:
    """Return the share of the most common class among the labelled pixels (H, W); 1 if there are none."""
    counts = mask[mask != ignore_index].bincount()
    return counts.max().item() / counts.sum().item() if len(counts) else 1.0
