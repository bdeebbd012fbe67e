"""Find the images and masks of a split in the layouts that people have."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ccsegformer.data.images import image_suffixes
from ccsegformer.errors import DataError

IMAGE_FOLDERS = ("images", "leftImg8bit")
MASK_FOLDERS = ("annotations", "masks", "labels", "gtFine")
SPLIT_NAMES = {
    "training": ("training", "train"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
IMAGE_ENDING = "_leftImg8bit"
MASK_ENDINGS = (
    *("", "_mask", "_label", "_labels", "_labelIds", "_labelTrainIds"),
    *("_gtFine_labelIds", "_gtFine_labelTrainIds"),
)
"""What a mask's name may have behind the image's."""
COLOR_ENDINGS = ("", "_mask", "_label", "_labels", "_color", "_gtFine_color", "_L")
"""The same for masks in colours; CamVid's end in "_L"."""
MASK_SUFFIXES = {".png", ".tif", ".tiff", ".bmp", ".gif"}
LOSSY = (".jpg", ".jpeg")


class Pair(NamedTuple):
    """An image and its mask; the name is the image's path in the split, without suffix."""

    name: str
    image: Path
    mask: Path


def find_pairs(root: Path, split: str, *, in_colors: bool = False) -> list[Pair]:
    """Find the images of a split and their masks, in the order of their names.

    Images are in `images/SPLIT` or `leftImg8bit/SPLIT`, masks in `annotations/SPLIT`, or in `masks`, `labels`
    or `gtFine` if there is no such folder; splits may have the names in `SPLIT_NAMES`.
    Both may have the same folders inside. `MASK_ENDINGS` are the endings of masks, or `COLOR_ENDINGS` if they
    are in colours.

    Raises:
        DataError: A missing folder, no images, an image without a mask or the reverse, two files with one
            name, or masks of two kinds.
    """
    image_folder = _split_folder(root, IMAGE_FOLDERS, split)
    mask_folder = _split_folder(root, MASK_FOLDERS, split)
    images = {
        name.removesuffix(IMAGE_ENDING): path
        for name, path in _files_by_name(image_folder, image_suffixes()).items()
    }
    masks = _files_by_name(mask_folder, MASK_SUFFIXES)
    if not images:
        raise DataError(f"{image_folder}: no images in this split{what_lies_there(image_folder)}")
    endings = COLOR_ENDINGS if in_colors else MASK_ENDINGS
    found = {name: [end for end in endings if name + end in masks] for name in images}
    if unlabelled := sorted(name for name, ends in found.items() if not ends):
        raise DataError(
            f"{mask_folder / unlabelled[0]}.png: mask is missing{and_more(unlabelled)}; every image needs one"
            f"{_near(mask_folder, unlabelled[0], endings)}"
        )
    kinds = sorted({end for ends in found.values() for end in ends})
    if len(kinds) > 1:
        listed = " and ".join(f"NAME{end}" for end in kinds)
        raise DataError(f"{mask_folder}: has masks of several kinds, {listed}; move away all but one kind")
    kind = kinds[0]
    if orphans := sorted(
        name for name in masks if name.endswith(kind) and name.removesuffix(kind) not in images
    ):
        raise DataError(f"{masks[orphans[0]]}: mask without an image in {image_folder}{and_more(orphans)}")
    return [Pair(name, images[name], masks[name + kind]) for name in sorted(images)]


def what_lies_there(folder: Path) -> str:
    """Return "; it holds 3 .pdf, 1 folder" for a message, or that there is nothing."""
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    kinds = Counter("folder" if path.is_dir() else path.suffix.lower() or "bare" for path in entries)
    if not kinds:
        return "; it is empty"
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    return f"; it holds {listed}"


def and_more(names: Sequence[str]) -> str:
    """Return " (and N more)" for the names after the first, or nothing."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def split_path(parent: Path, split: str) -> Path:
    """Return the path of a split in `parent`, under the first of its names that exists, or its own name."""
    names = [parent / name for name in SPLIT_NAMES.get(split, (split,))]
    return next((path for path in names if path.is_dir()), parent / split)


def _split_folder(root: Path, folders: Sequence[str], split: str) -> Path:
    """Return the folder of a split, under the first of its names that exists."""
    parents = [root / name for name in folders if (root / name).is_dir()]
    if not parents:
        inside = sorted(path.name for path in root.iterdir() if path.is_dir())
        hint = f"; the folders here are {', '.join(inside)}" if inside else ""
        raise DataError(f"{root / folders[0] / split}: no such folder{hint}")
    if len(parents) > 1 and parents[0].name != folders[0]:
        listed = ", ".join(path.name for path in parents)
        raise DataError(f"{root}: has several folders of one kind, {listed}; keep one")
    if (found := split_path(parents[0], split)).is_dir():
        return found
    others = sorted(path.name for path in parents[0].iterdir() if path.is_dir())
    hint = f"; the splits here are {', '.join(others)}" if others else ""
    raise DataError(f"{parents[0] / split}: no such folder{hint}")


def _files_by_name(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Map the files in a folder and those inside it by their paths without suffix, in Unicode's form NFC."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or path.suffix.lower() not in suffixes or path.is_dir():
            continue
        name = _normal(inside.with_suffix("").as_posix())
        if name in found:
            raise DataError(f"{path}: has the stem of {found[name].name}; rename one")
        found[name] = path
    return found


def _near(folder: Path, name: str, endings: Sequence[str]) -> str:
    """Say which file may have been meant as the mask of an image, or what lies in the folder."""
    others = _files_by_name(folder, LOSSY)
    for end in endings:
        if name + end in others:
            return f"; {others[name + end].name} is a JPEG, which changes class ids: save masks as PNG"
    in_colors = _files_by_name(folder, MASK_SUFFIXES)
    for end in set(COLOR_ENDINGS) - set(endings):
        if name + end in in_colors:
            return (
                f"; {in_colors[name + end].name} is there: if its colours are classes, list them in "
                "classes.json or in a palette file (--classes)"
            )
    stem = name.rpartition("/")[2]
    begun = tuple(stem + mark for mark in "-_. ")
    if near := sorted(path.name for path in folder.rglob("*") if _normal(path.name).startswith(begun)):
        return f"; {near[0]} is there, but the endings known are {', '.join(endings[1:])}"
    return what_lies_there(folder)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
