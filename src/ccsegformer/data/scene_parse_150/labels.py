"""Classes of SceneParse150, the scene parsing challenge of ADE20K, and conversion of its raw ids to labels.

Raw id 0 is "other" and not scored, as in the development kit, https://github.com/CSAILVision/sceneparsing.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torchvision import tv_tensors

from ccsegformer.data.colors import read_class_file, read_color_mask
from ccsegformer.data.images import read_mask
from ccsegformer.data.labels import Classes, read_classes
from ccsegformer.data.scene_parse_150._classes import NAMES_AND_COLORS
from ccsegformer.errors import DataError

SCENE_PARSE_150 = Classes(
    tuple(name for name, _ in NAMES_AND_COLORS), tuple(color for _, color in NAMES_AND_COLORS), 255
)
LISTING = "objectInfo150.txt"
"""Class list at the root of the official release, which identifies the folder."""

ReadMask = Callable[[str | Path, bytes | None], tv_tensors.Mask]


def read_raw_mask(path: str | Path, content: bytes | None = None) -> tv_tensors.Mask:
    """Read an official annotation as labels, uint8 (H, W). The arguments are those of `read_mask`.

    Raises:
        DataError: As `read_mask`; also for a mask in colour, of 16 bits or with other ids.
    """
    mask = read_mask(
        path, content, advice="SceneParse150 has grey masks, full ADE20K coloured ones (*_seg.png)"
    )
    return labels_from_raw_ids(mask, path)


def labels_from_raw_ids(ids: torch.Tensor, path: str | Path) -> tv_tensors.Mask:
    """Convert SceneParse150's raw ids (H, W) to labels: 1-150 become 0-149; 0, "other", is ignored.

    Raises:
        DataError: Ids of another range or of 16 bits, which belong to another data set.
    """
    count = len(SCENE_PARSE_150)
    if ids.dtype != torch.uint8:
        raise DataError(
            f"{path}: a 16-bit annotation, but SceneParse150 has 8 bits; perhaps it is from full ADE20K"
        )
    if (foreign := ids > count).any():
        row, column = foreign.nonzero()[0].tolist()
        ignored = bool((ids[foreign] == SCENE_PARSE_150.ignore_index).all())
        guess = (
            "perhaps these are labels (0-149, 255 ignored), which need a classes.json"
            if ignored
            else "perhaps it is from another data set, such as full ADE20K"
        )
        raise DataError(
            f"{path}: id {ids[row, column]} at row {row}, column {column} is outside SceneParse150's "
            f"0-{count}; {guess}"
        )
    return tv_tensors.Mask(torch.where(ids == 0, SCENE_PARSE_150.ignore_index, ids - 1))


def chosen_labels(classes: str) -> tuple[Classes, ReadMask]:
    """Return the classes and the reader of masks for a path (see `read_class_file`), or "scene_parse_150".

    Raises:
        DataError: As `read_class_file`.
    """
    if classes == "scene_parse_150":
        return SCENE_PARSE_150, read_raw_mask
    return _with_reader(read_class_file(classes))


def folder_labels(root: Path) -> tuple[Classes, ReadMask]:
    """Return the classes of a folder and the function that reads its masks.

    The classes come from `classes.json`, or are SceneParse150's if there is an `objectInfo150.txt` instead.

    Raises:
        DataError: As `read_classes`; for a parent of the official folder, or full ADE20K, with a hint.
    """
    if (root / "classes.json").exists():
        return _with_reader(read_classes(root / "classes.json"))
    if (root / LISTING).is_file():
        return SCENE_PARSE_150, read_raw_mask
    if (root / "ADEChallengeData2016" / LISTING).is_file():
        raise DataError(f"{root}: SceneParse150 is in {root / 'ADEChallengeData2016'}; use that folder")
    if any(root.glob("index_ade20k.*")):
        raise DataError(
            f"{root}: full ADE20K is not supported; fetch its 150-class version with 'ccsegformer data "
            "scene-parse-150'"
        )
    return read_classes(root / "classes.json"), read_mask


def _with_reader(classes: Classes) -> tuple[Classes, ReadMask]:
    """Return classes and the reader of their masks: of ids, or of colours if the classes list them."""
    return classes, partial(read_color_mask, classes) if classes.colors else read_mask
