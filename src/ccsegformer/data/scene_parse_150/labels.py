"""SceneParse150, the 150 classes of ADE20K's scene parsing challenge: its classes, and its raw ids as labels.

The release and its rule, id 0 being "other" and not scored, are those of the development kit,
https://github.com/CSAILVision/sceneparsing.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torchvision import tv_tensors

from ccsegformer.data.images import read_mask
from ccsegformer.data.labels import Classes, read_classes
from ccsegformer.data.scene_parse_150._classes import CLASSES
from ccsegformer.errors import DataError

SCENE_PARSE_150 = Classes(tuple(name for name, _ in CLASSES), tuple(color for _, color in CLASSES), 255)
LISTING = "objectInfo150.txt"
"""The class list at the root of the official release, by which a folder is recognised."""

ReadMask = Callable[[str | Path, bytes | None], tv_tensors.Mask]


def read_raw_mask(path: str | Path, content: bytes | None = None) -> tv_tensors.Mask:
    """Read an official annotation as labels, uint8 (H, W); arguments as for `read_mask`.

    Raises:
        DataError: as `read_mask`, and for a mask that is not SceneParse150's: colours, 16 bits, other ids.
    """
    mask = read_mask(
        path, content, advice="SceneParse150's are grey, full ADE20K's (*_seg.png) are in colour"
    )
    return labels_from_raw_ids(mask, path)


def labels_from_raw_ids(ids: torch.Tensor, path: str | Path) -> tv_tensors.Mask:
    """Turn SceneParse150's raw ids (H, W) into labels: 1 to 150 become 0 to 149, and 0, "other", is ignored.

    Raises:
        DataError: ids of another range or of 16 bits, which are another set's.
    """
    count = len(SCENE_PARSE_150)
    if ids.dtype != torch.uint8:
        raise DataError(
            f"{path}: an annotation of 16 bits, where SceneParse150's have 8; perhaps one of full ADE20K"
        )
    if (foreign := ids > count).any():
        row, column = foreign.nonzero()[0].tolist()
        ignored = bool((ids[foreign] == SCENE_PARSE_150.ignore_index).all())
        guess = (
            "perhaps labels already (0-149, 255 ignored), which need a classes.json beside them"
            if ignored
            else "perhaps another set's, such as full ADE20K's"
        )
        raise DataError(
            f"{path}: id {ids[row, column]} at row {row}, column {column} is not one of SceneParse150's "
            f"0-{count}; {guess}"
        )
    return tv_tensors.Mask(torch.where(ids == 0, SCENE_PARSE_150.ignore_index, ids - 1))


def folder_labels(root: Path) -> tuple[Classes, ReadMask]:
    """The classes of a folder, and what reads its masks as labels.

    They are those of `classes.json`; without it, SceneParse150's where its `objectInfo150.txt` is.

    Raises:
        DataError: as `read_classes`; a folder that is a step above or beside the right one is told.
    """
    if (root / "classes.json").exists():
        return read_classes(root / "classes.json"), read_mask
    if (root / LISTING).is_file():
        return SCENE_PARSE_150, read_raw_mask
    if (root / "ADEChallengeData2016" / LISTING).is_file():
        raise DataError(f"{root}: SceneParse150 is in {root / 'ADEChallengeData2016'}; give that folder")
    if any(root.glob("index_ade20k.*")):
        raise DataError(
            f"{root}: is full ADE20K, which is not read here; 'ccsegformer data scene-parse-150' fetches its "
            "150 classes"
        )
    return read_classes(root / "classes.json"), read_mask
