"""Data sets by name: the generated scenes, or a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from ccsegformer.data.folder import ImageMaskFolder
from ccsegformer.errors import DataError

if TYPE_CHECKING:
    from ccsegformer.data.procedural import ProceduralScenes

PROCEDURAL_COUNTS = {"training": 400, "validation": 60}


def open_dataset(data: str | Path, split: str) -> "ImageMaskFolder | ProceduralScenes":
    """Open a split of the folder `data`, or of the generated scenes when `data` is "procedural".

    Raises:
        DataError: the folder or the split cannot be used.
    """
    if data == "scene_parse_150":
        from ccsegformer.data.fetch import fetched_folder

        return ImageMaskFolder(fetched_folder(), split)
    if data != "procedural":
        return ImageMaskFolder(data, split)
    if split not in PROCEDURAL_COUNTS:
        raise DataError(f"procedural: no split {split!r}; the splits are {', '.join(PROCEDURAL_COUNTS)}")
    from ccsegformer.data.procedural import ProceduralScenes

    return ProceduralScenes(split, count=PROCEDURAL_COUNTS[split])
