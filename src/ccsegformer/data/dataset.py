"""The data set protocols of training and evaluation, and the checks on every sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

import torch
from torchvision import tv_tensors

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError


class Sample(TypedDict):
    """One image with its mask."""

    image: tv_tensors.Image  # uint8 RGB (3, H, W), or uint8 or float32 (bands, H, W)
    mask: tv_tensors.Mask  # uint8 or int32 (H, W): class ids and the ignore index
    name: str


class LabelledImages(Protocol):
    """A data set with a fixed sample for every index."""

    @property
    def classes(self) -> Classes:
        """Classes of the masks."""

    @property
    def names(self) -> Sequence[str]:
        """Name of every sample, in order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@runtime_checkable
class DrawnSamples(Protocol):
    """A data set that draws a new sample each time, such as random windows of scenes."""

    @property
    def classes(self) -> Classes:
        """Classes of the masks."""

    def __len__(self) -> int: ...

    def draw(self, index: int, generator: torch.Generator, /) -> Sample:
        """Draw a sample for `index`; all randomness comes from `generator`."""


def check_size(
    mask: torch.Tensor, image: torch.Tensor, mask_name: str | Path, image_name: str | Path | None = None
) -> None:
    """Check that a mask (H, W) has the size of its image (bands, H, W).

    Raises:
        DataError: The sizes differ; the message gives both.
    """
    if mask.shape != image.shape[1:]:
        of = "" if image_name is None else f" {image_name}"
        raise DataError(
            f"{mask_name}: the mask has {_format_size(mask)} pixels, "
            f"but its image{of} has {_format_size(image)}"
        )


def check_labels(
    mask: torch.Tensor, classes: Classes, path: str | Path, *, top: int = 0, left: int = 0
) -> None:
    """Check that a mask (H, W) holds only class ids and the ignore index.

    Args:
        mask: Integer labels of a file or of a window in it.
        classes: Classes of the data set.
        path: Name for the message.
        top: Row of the file at which the mask begins.
        left: Column of the file at which the mask begins.

    Raises:
        DataError: Another value; the message names file, value, position and classes.
    """
    if mask.element_size() < 4:
        mask = mask.int()  # a class above 255 would wrap in uint8
    unknown = ((mask < 0) | (mask >= len(classes))) & (mask != classes.ignore_index)
    if unknown.any():
        row, column = unknown.nonzero()[0].tolist()
        raise DataError(
            f"{path}: label {mask[row, column]} at row {top + row}, column {left + column} is outside the "
            f"classes 0-{len(classes) - 1} (ignore_index {classes.ignore_index})"
        )


def to_labels(
    mask: torch.Tensor, classes: Classes, path: str | Path, *, top: int = 0, left: int = 0
) -> torch.Tensor:
    """Return a mask's labels (H, W): its ids, replaced by the classes' label map if there is one, checked.

    The arguments are those of `check_labels`.

    Raises:
        DataError: As `check_labels`, or an id that is not in the label map.
    """
    if not classes.label_map:
        check_labels(mask, classes, path, top=top, left=left)
        return mask
    ids = mask.as_subclass(torch.Tensor).long()
    mapped = {classes.ignore_index: classes.ignore_index, **dict(classes.label_map)}
    table = torch.full((max(mapped) + 2,), -1)
    table[list(mapped)] = torch.tensor(list(mapped.values()))
    labels = table[torch.where(ids < 0, len(table) - 1, ids.clamp(max=len(table) - 1))]
    if (unknown := labels < 0).any():
        row, column = unknown.nonzero()[0].tolist()
        listed = ", ".join(str(raw) for raw in sorted(mapped))
        raise DataError(
            f"{path}: id {ids[row, column]} at row {top + row}, column {left + column} is not in the map of "
            f"the classes, which has {listed if len(listed) < 80 else f'{listed[:77]}...'}"
        )
    narrow = labels.to(torch.uint8 if classes.ignore_index <= 255 else torch.int32)
    return tv_tensors.Mask(narrow) if isinstance(mask, tv_tensors.Mask) else narrow


def _format_size(image: torch.Tensor) -> str:
    height, width = image.shape[-2:]
    return f"{width}x{height}"
