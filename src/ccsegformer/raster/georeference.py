"""Where rasters and their windows lie on the ground."""

import functools
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.io import DatasetReader

from ccsegformer.errors import DataError

Coordinates = NDArray[np.floating] | NDArray[np.integer]
EDGE_POINTS = 21  # on each side of an outline that goes to another CRS, where straight lines may bend
SAME_GRID = 1e-3  # of a pixel, at most, between the corners of two grids that count as one


def is_georeferenced(source: DatasetReader) -> bool:
    """Whether a raster says where on the ground it lies, be it without a CRS."""
    return not source.transform.is_identity


def footprint(source: DatasetReader, crs: CRS | None = None) -> shapely.Polygon:
    """The outline of a raster on the ground, in its own CRS or in another.

    Raises:
        DataError: as `project`.
    """
    own = source.crs.to_wkt() if source.crs else None
    try:
        return outline(source.transform, source.width, source.height, own, crs.to_wkt() if crs else own)
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from error


def outline(
    transform: Affine, width: int, height: int, crs: str | None, target: str | None
) -> shapely.Polygon:
    """The outline of `width` x `height` pixels on the ground, in the CRS `target` (WKT)."""
    along = np.linspace(0, 1, EDGE_POINTS)
    ends = np.zeros_like(along)
    columns = width * np.concatenate([along, ends + 1, along[::-1], ends])
    rows = height * np.concatenate([ends, along, ends + 1, along[::-1]])
    return project(shapely.Polygon(np.stack(_ground(transform, columns, rows), axis=1)), crs, target)


def project(shape: Any, crs: str | None, target: str | None) -> Any:
    """A geometry in another CRS, both as WKT; as it is where one of them is unknown.

    Raises:
        DataError: there is no way from one to the other, as where one is local.
    """
    if crs == target or crs is None or target is None:
        return shape
    return shapely.transform(shape, _transformer(crs, target).transform, interleaved=False)


@functools.cache
def _transformer(crs: str, target: str) -> Transformer:
    try:
        return Transformer.from_crs(crs, target, always_xy=True)
    except ProjError as error:
        raise DataError(f"its CRS and that beside it have no common ground: {error}") from error


def same_grid(one: DatasetReader, other: DatasetReader) -> bool:
    """Whether two rasters have the same pixels, up to rounding in how their grids were written."""
    if one.shape != other.shape or (one.crs and other.crs and one.crs != other.crs):
        return False
    columns, rows = (
        np.array(ends) for ends in ((0, one.width, 0, one.width), (0, 0, one.height, one.height))
    )
    back = _ground(~one.transform, *_ground(other.transform, columns, rows))
    return max(np.abs(back[0] - columns).max(), np.abs(back[1] - rows).max()) <= SAME_GRID


def _ground(transform: Affine, columns: Coordinates, rows: Coordinates) -> tuple[Coordinates, Coordinates]:
    """Where pixel corners lie; affine's own operator for it is another one from version to version."""
    a, b, c, d, e, f = transform[:6]
    return a * columns + b * rows + c, d * columns + e * rows + f


def moved(transform: Affine, left: int, top: int) -> Affine:
    """The transform of a window that begins there."""
    x, y = _ground(transform, np.array(left), np.array(top))
    return Affine(transform.a, transform.b, float(x), transform.d, transform.e, float(y))
