"""Warn where scenes of two splits show the same ground."""

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ccsegformer.data.folder import and_more, files_by_stem
from ccsegformer.errors import DataError
from ccsegformer.raster.georeference import footprint, is_georeferenced, project
from ccsegformer.raster.read import MASK, RASTER_SUFFIXES, open_raster


class _Place(NamedTuple):
    path: Path
    crs: str  # as WKT
    outline: Any
    pixel: float  # its side


def warn_about_overlaps(root: Path, split: str, scenes: Iterable[Path]) -> None:
    """Say so, once, where a scene lies on the ground of one that the model is trained or scored on, too."""
    other = "validation" if split == "training" else "training"
    if not (root / other).is_dir():
        return
    theirs = [
        path for path in files_by_stem(root / other, RASTER_SUFFIXES).values() if not path.stem.endswith(MASK)
    ]
    grounds = list(_places(theirs))
    for mine in _places(scenes):
        for ground in grounds:
            # Without a pixel on every side, since neighbours share an edge.
            try:
                one, two = mine.outline, project(ground.outline, ground.crs, mine.crs)
            except DataError as error:
                _warn(f"{mine.path}: {error}: whether splits overlap on the ground is not known")
                return
            if one.buffer(-mine.pixel).intersects(two.buffer(-mine.pixel)):
                _warn(
                    f"{mine.path}: lies on the same ground as {ground.path}: split by area, or scores flatter"
                )


def _places(paths: Iterable[Path]) -> Iterator[_Place]:
    """Where the scenes lie that say so."""
    nowhere = []
    for path in paths:
        with open_raster(path) as source:
            if source.crs is None or not is_georeferenced(source):
                nowhere.append(path)
                continue
            pixel = abs(source.transform.determinant) ** 0.5
            yield _Place(path, source.crs.to_wkt(), footprint(source), pixel)
    if nowhere:
        more = and_more([str(path) for path in nowhere])
        _warn(f"{nowhere[0]}: has no CRS{more}: whether splits overlap on the ground is not known")


@cache
def _warn(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)
