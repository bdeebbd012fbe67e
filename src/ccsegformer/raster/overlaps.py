"""Warn if scenes of two splits show the same area."""

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ccsegformer.data.folder import files_by_stem
from ccsegformer.data.layout import SPLIT_NAMES, and_more, split_path
from ccsegformer.errors import DataError
from ccsegformer.raster.georeference import footprint, is_georeferenced, project, turned
from ccsegformer.raster.read import MASK, RASTER_SUFFIXES, open_raster

UNKNOWN = "cannot check whether the splits overlap"


class _Footprint(NamedTuple):
    path: Path
    crs: str
    """CRS as WKT."""
    outline: Any
    pixel: float
    """Side of a pixel in map units."""


def warn_about_overlaps(root: Path, split: str, scenes: Iterable[Path]) -> None:
    """Warn on stderr, once for each pair, if scenes of the training and validation splits overlap.

    `scenes` are those of `split`; they are compared with the validation split, or, for any split other than
    training, with the training split.
    """
    is_training = split in SPLIT_NAMES["training"]
    other = split_path(root, "validation" if is_training else "training")
    if not other.is_dir():
        return
    others = list(
        _footprints(
            path for path in files_by_stem(other, RASTER_SUFFIXES).values() if not path.stem.endswith(MASK)
        )
    )
    for one in _footprints(scenes):
        for two in others:
            try:
                outlines = one.outline, project(two.outline, two.crs, one.crs)
            except DataError as error:
                warn_once(f"{one.path} and {two.path}: {error}; {UNKNOWN}")
                return
            # Neighbours share an edge: shrink both by a pixel.
            inner = outlines[1].buffer(-one.pixel)
            if any(outlines[0].buffer(-one.pixel).intersects(copy) for copy in turned(inner, one.crs)):
                warn_once(
                    f"{one.path}: overlaps {two.path} of the other split, so scores will be too high; split "
                    "scenes by area"
                )


def _footprints(paths: Iterable[Path]) -> Iterator[_Footprint]:
    """Yield the footprints of scenes with a CRS; warn if others have none."""
    without_crs = []
    for path in paths:
        with open_raster(path) as source:
            if source.crs is None or not is_georeferenced(source):
                without_crs.append(path)
                continue
            pixel = abs(source.transform.determinant) ** 0.5
            yield _Footprint(path, source.crs.to_wkt(), footprint(source), pixel)
    if without_crs:
        more = and_more([str(path) for path in without_crs])
        warn_once(f"{without_crs[0]}: has no CRS{more}; {UNKNOWN}")


@cache
def warn_once(message: str) -> None:
    """Print a warning on stderr, once, by the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)
