"""Joint transforms of an image and its mask, and the normalisation that the networks expect.

The augmentations are those of the report's section 4.2 and of SegFormer's training on ADE20K, each with a
probability of its own. A transform draws only from the generator it is given, and as many values whatever its
settings and whether it acts or not, so that changing one of a chain leaves what the others draw as it was.
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

BRIGHTNESS = 32  # the most added to or taken from 8-bit values
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 0.1  # of the circle of colours, either way
CROP_RETRIES = 10


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]} is above the upper bound {bounds[1]}")
    return bounds


Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_rising)]


class Padding(NamedTuple):
    """What an image that is too small is filled up with."""

    label: int
    color: tuple[float, ...] = MEAN_COLOR


class _Transform(BaseModel):
    """Acts with `probability` on an image, uint8 or float32 (bands, H, W), and its mask, integer (H, W)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    draws: ClassVar[int] = 0  # how many values, uniform in [0, 1), `_apply` is given
    needs_rgb: ClassVar[bool] = False  # whether it acts on 8-bit RGB, (3, H, W), alone

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
        """Transform both or return both untouched, as `generator` decides.

        Padding is `ignore_index` in the mask and `color`, a value for each band, in the image.
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
    """Turn by 90, 180 or 270 degrees, each as likely; every pixel keeps its value."""

    name: Literal["rotate90"] = "rotate90"
    draws: ClassVar[int] = 1

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        turns = 1 + int(3 * draws[0])
        return Image(image.rot90(turns, (1, 2))), Mask(mask.rot90(turns))


class Invert(_Transform):
    """Replace every colour by its negative."""

    name: Literal["invert"] = "invert"
    needs_rgb: ClassVar[bool] = True

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        return F.invert(image), mask


class Grayscale(_Transform):
    """Take the colour away; three equal channels remain."""

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
        sigma = _between(self.sigma, draws[0])
        # Beyond three sigma nothing is left of a Gaussian; reflected borders are narrower than the image.
        radius = math.ceil(3 * sigma)
        width, height = (2 * min(radius, side - 1) + 1 for side in (image.shape[2], image.shape[1]))
        return F.gaussian_blur(image, kernel_size=[width, height], sigma=[sigma, sigma]), mask


class PhotometricDistortion(_Transform):
    """Change brightness, contrast, saturation and hue, each or not by a fair coin, as MMSegmentation does.

    Up to 32 is added to or taken from the 8-bit values (brightness), they are multiplied by 0.5 to 1.5
    (contrast; before or after the colours, by another coin), and so is HSV's saturation; the hue is turned by
    up to 36 degrees. torchvision's RandomPhotometricDistort differs: it multiplies for brightness, and blends
    with the image's mean grey for contrast and with each pixel's own grey for saturation.
    """

    name: Literal["photometric_distortion"] = "photometric_distortion"
    needs_rgb: ClassVar[bool] = True
    draws: ClassVar[int] = 9

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        brightness, contrast, contrast_first, saturation, hue = (draw < 0.5 for draw in draws[:5])
        shift, gain = _between((-BRIGHTNESS, BRIGHTNESS), draws[5]), _between(CONTRAST, draws[6])
        if brightness:
            image = Image((image + shift).clamp_(0, 255).to(torch.uint8))
        if contrast and contrast_first:
            image = F.adjust_brightness(image, gain)
        if saturation:
            image = _saturate(image, _between(SATURATION, draws[7]))
        if hue:
            image = F.adjust_hue(image, _between((-HUE, HUE), draws[8]))
        if contrast and not contrast_first:
            image = F.adjust_brightness(image, gain)
        return image, mask


class RandomResize(_Transform):
    """Scale both sides by one factor; the mask takes the nearest pixel's label.

    The factor is uniform in `ratio`. Given a `scale`, it is relative to the largest size that fits in: a long
    side of at most the larger and a short side of at most the smaller of the two numbers, in pixels.
    """

    name: Literal["random_resize"] = "random_resize"
    ratio: Range = (0.5, 2.0)
    scale: tuple[PositiveInt, PositiveInt] | None = None
    draws: ClassVar[int] = 1

    def _apply(self, image: Image, mask: Mask, draws: list[float], padding: Padding) -> tuple[Image, Mask]:
        ratio = _between(self.ratio, draws[0])
        if self.scale:
            ratio *= min(
                limit / side for limit, side in zip(sorted(self.scale), sorted(image.shape[1:]), strict=True)
            )
        size = [max(1, round(ratio * side)) for side in image.shape[1:]]
        # "Nearest exact" samples at pixel centres as the image's bilinear does; plain "nearest" is shifted.
        labels = F.resize(mask, size, interpolation=InterpolationMode.NEAREST_EXACT)
        if (
            size == [1, 1] and image.dtype == torch.uint8
        ):  # PyTorch's kernel for 8 bits cannot make a single pixel
            pixel = F.resize(image.float(), size, antialias=True).round().to(torch.uint8)
            return Image(pixel), labels
        return F.resize(image, size, antialias=True), labels


class RandomCrop(_Transform):
    """Cut out a square whose side is one of `sizes`, at a random place.

    A smaller image keeps all its pixels on that side, at a random place on the mean colour, ImageNet's or the
    bands' own, which is about zero once normalised; the mask is `ignore_index` there. Without `pad` it stays
    smaller, until its batch pads it, below and to the right, to the size of the largest.

    Given a `max_class_share`, the place is drawn anew, up to ten times, while a class has that share of the
    labelled pixels or more, or none is labelled (MMSegmentation's `cat_max_ratio`).
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
            # Further places follow from the first, so that the others of a chain draw the same with them.
            further = torch.Generator().manual_seed(int(draws[1] * 2**53))
            places += torch.rand(CROP_RETRIES, 2, dtype=torch.float64, generator=further).tolist()
        for down, right in places:
            top, above = _place(size, height, down)
            left, before = _place(size, width, right)
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
    """Apply a chain of transforms, in order, to an image (bands, H, W), uint8 or float32, and its mask.

    `ignore_index` and `color` are what a transform pads mask and image with.
    """
    for transform in transforms:
        image, mask = transform(image, mask, generator, ignore_index=ignore_index, color=color)
    return image, mask


def window_size(transforms: Sequence[Transform], default: int) -> int:
    """Side in pixels of the square that a chain fills its largest crop from, resized by its least ratio.

    `default` where nothing is cropped.
    """
    size = None
    for transform in reversed(transforms):
        if isinstance(transform, RandomCrop):
            size = max(transform.sizes)
        elif isinstance(transform, RandomResize) and size is not None and transform.scale is None:
            size = math.ceil(size / min(1.0, transform.ratio[0]))
    return size or default


def _between(bounds: tuple[float, float], draw: float) -> float:
    low, high = bounds
    return low + draw * (high - low)


def _place(size: int, length: int, draw: float) -> tuple[int, int]:
    """Start of a window of `size` in a side of `length`, or else how much padding goes before the side."""
    start = int(draw * (abs(length - size) + 1))
    return (start, 0) if length >= size else (0, start)


def _saturate(image: Image, factor: float) -> Image:
    """Multiply HSV's saturation, (largest - smallest) / largest of R, G and B, by `factor`, up to 1.

    Value and hue stay, so the largest channel does, and the distances of the others to it are multiplied.
    """
    smallest, largest = (extreme.float() for extreme in torch.aminmax(image.as_subclass(torch.Tensor), dim=0))
    # The factor that takes a pixel's saturation to 1; a grey one has distances of 0 to multiply.
    factors = (largest / (largest - smallest).clamp_(min=1)).clamp_(max=factor)
    return Image((largest - factors * (largest - image)).round_().to(torch.uint8))


def _largest_share(mask: Mask, ignore_index: int) -> float:
    """Share of the labelled pixels, integer (H, W), that the commonest class has; 1 where there are none."""
    counts = mask[mask != ignore_index].bincount()
    return counts.max().item() / counts.sum().item() if len(counts) else 1.0
