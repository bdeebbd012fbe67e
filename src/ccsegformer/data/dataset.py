"""What training and evaluation ask of a data set, and the checks that every sample passes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

import torch
from torchvision import tv_tensors

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError


class Sample(TypedDict):
    """One image with its mask."""

    image: tv_tensors.Image  # uint8 (3, H, W), RGB; of scenes uint8 or float32 (bands, H, W)
    mask: tv_tensors.Mask  # uint8 or int32 (H, W), class ids and the ignore index
    name: str


class LabelledImages(Protocol):
    """What training and evaluation ask of a data set: folders and generated scenes both offer it."""

    @property
    def classes(self) -> Classes:
        """The classes that the masks hold."""

    @property
    def names(self) -> Sequence[str]:
        """The name of every sample, in order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def check_size(
    mask: torch.Tensor, image: torch.Tensor, mask_name: str | Path, image_name: str | Path | None = None
) -> None:
    """Check that a mask (H, W) has the size of its image (bands, H, W).

    Raises:
        DataError: It has not; the message gives both sizes and names.
    """
    if mask.shape != image.shape[1:]:
        of = "" if image_name is None else f" {image_name}"
        raise DataError(
            f"{mask_name}: the mask has {_size(mask)} pixels, but its image{of} has {_size(image)}"
        )


def check_labels(
    mask: torch.Tensor, classes: Classes, path: str | Path, *, top: int = 0, left: int = 0
) -> None:
    """Make sure that a mask (H, W) holds class ids and the ignore index only.

    `top` and `left` are where in the file it begins.

    Raises:
        DataError: another value; the message names file, value, place and the classes.
    """
    unknown = ((mask < 0) | (mask >= len(classes))) & (mask != classes.ignore_index)
    if unknown.any():
        row, column = unknown.nonzero()[0].tolist()
        raise DataError(
            f"{path}: label {mask[row, column]} at row {top + row}, column {left + column} is outside the "
            f"classes 0-{len(classes) - 1} (ignore_index {classes.ignore_index})"
        )


def _size(image: torch.Tensor) -> str:
    height, width = image.shape[-2:]
    return f"{width}x{height}"


@runtime_checkable
class DrawnSamples(Protocol):
    """A data set whose samples are drawn anew each time, such as random windows of scenes."""

    @property
    def classes(self) -> Classes:
        """The classes that the masks hold."""

    def __len__(self) -> int: ...

    def draw(self, index: int, generator: torch.Generator, /) -> Sample:
        """Draw a sample in the place of `index`, from `generator` alone."""
