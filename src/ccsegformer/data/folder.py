"""Folders of images and masks in the layout of ADE20K's SceneParse150 release."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ccsegformer.data.images import read_image
from ccsegformer.data.labels import Classes
from ccsegformer.data.scene_parse import ReadMask, folder_labels
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


class ImageMaskFolder(Dataset[Sample]):
    """The images `images/SPLIT/NAME.*` with their masks `annotations/SPLIT/NAME.png`, and `classes.json`.

    A folder with `objectInfo150.txt` and no `classes.json` is the official SceneParse150: see `scene_parse`.
    Samples are in the order of their `names`. That every image has its mask is checked here, from file names
    alone; sizes and labels are checked whenever a sample is read.

    Raises:
        DataError: a missing folder, mask or image, an empty split, or classes.json as in `read_classes`.
    """

    def __init__(self, root: str | Path, split: str = "training") -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{root}: no such folder")
        self.split = split
        self.classes: Classes
        self._read_mask: ReadMask
        self.classes, self._read_mask = folder_labels(self.root)
        folder = self.root / "images" / split
        images = files_by_stem(folder, Image.registered_extensions())
        masks = files_by_stem(self.root / "annotations" / split, [".png"])
        if not images:
            raise DataError(f"{folder}: no images in this split")
        if unlabelled := sorted(images.keys() - masks.keys()):
            missing = self.root / "annotations" / split / f"{unlabelled[0]}.png"
            raise DataError(f"{missing}: mask is missing{and_more(unlabelled)}; every image needs one")
        if orphans := sorted(masks.keys() - images.keys()):
            raise DataError(f"{masks[orphans[0]]}: mask without an image in {folder}{and_more(orphans)}")
        self.names: tuple[str, ...] = tuple(sorted(images))
        self._files = [(images[name], masks[name]) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Read a sample, checking that image and mask fit each other and the classes."""
        image_path, mask_path = self._files[index]
        image, mask = read_image(image_path), self._read_mask(mask_path, None)
        check_size(mask, image, mask_path, image_path)
        check_labels(mask, self.classes, mask_path)
        return {"image": image, "mask": mask, "name": self.names[index]}


def check_size(mask: torch.Tensor, image: torch.Tensor, mask_path: str | Path, path: str | Path) -> None:
    """Make sure that a mask (H, W) is as large as its image (3, H, W).

    Raises:
        DataError: it is not; the message names both.
    """
    if mask.shape != image.shape[1:]:
        raise DataError(f"{mask_path}: mask of {_size(mask)} pixels for an image of {_size(image)}: {path}")


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


def files_by_stem(folder: Path, extensions: Iterable[str]) -> dict[str, Path]:
    """Files of these types by name without extension; hidden and other files are passed over."""
    if not folder.is_dir():
        others = sorted(path.name for path in folder.parent.glob("*/") if path.is_dir())
        hint = f"; the splits here are {', '.join(others)}" if others else ""
        raise DataError(f"{folder}: no such folder{hint}")
    extensions = set(extensions)
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in extensions or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(f"{path}: same name as {found[path.stem].name}; names must differ before the dot")
        found[path.stem] = path
    return found


def and_more(names: Sequence[str]) -> str:
    """How many names there are beyond the first."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _size(image: torch.Tensor) -> str:
    height, width = image.shape[-2:]
    return f"{width}x{height}"
