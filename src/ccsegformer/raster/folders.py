"""Find the images and scenes in folders."""

from collections.abc import Iterable
from pathlib import Path

from ccsegformer.data.images import image_suffixes
from ccsegformer.data.layout import what_lies_there
from ccsegformer.errors import DataError
from ccsegformer.raster.read import MASK, RASTER_SUFFIXES, has_georeference


def images_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder, by name, without the masks of scenes.

    Raises:
        DataError: there are none.
    """
    found = images_among(folder.iterdir())
    if not found:
        raise DataError(f"{folder}: no images in this folder{what_lies_there(folder)}")
    return found


def images_among(paths: Iterable[Path]) -> list[Path]:
    """Return the images among files and folders, in order, without hidden files and the masks of scenes."""
    known = {*image_suffixes(), *RASTER_SUFFIXES}
    files = [path for path in paths if not path.name.startswith(".") and not path.is_dir()]
    found = [path for path in files if path.suffix.lower() in known or has_georeference(path)]
    return sorted(_without_masks(found))


def _without_masks(found: list[Path]) -> list[Path]:
    """Leave out the masks of scenes: rasters named after another file, and PNGs named after a raster."""
    rasters = {path for path in found if path.suffix.lower() in RASTER_SUFFIXES}
    named, raster_named = ({path.with_name(path.stem + MASK) for path in paths} for paths in (found, rasters))
    return [
        path
        for path in found
        if not (path in rasters and path.with_suffix("") in named)
        and not (path.suffix.lower() == ".png" and path.with_suffix("") in raster_named)
    ]
