"""Outlines of rasters and windows on the map, in their own or another CRS."""

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.io import DatasetReader

from ccsegformer.errors import DataError
from ccsegformer.raster.read import spans_area

if TYPE_CHECKING:
    import shapely
    from pyproj import Transformer

Coordinates = NDArray[np.floating] | NDArray[np.integer]
EDGE_POINTS = 21
"""Points on each side of an outline; straight lines may become curves in another CRS."""
GRID_TOLERANCE = 1e-3
"""Largest distance, in pixels, between the corners of two grids that count as the same."""


def is_georeferenced(source: DatasetReader) -> bool:
    """Return whether a raster has a geotransform, with or without a CRS."""
    return not source.transform.is_identity and source.driver != "PNM" and spans_area(source.transform)


def footprint(source: DatasetReader, crs: CRS | None = None) -> "shapely.Polygon":
    """Return the outline of a raster on the map, in its own CRS or in `crs`.

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
) -> "shapely.Polygon":
    """Return the outline of `width` x `height` pixels on the map, projected from `crs` to `target` (WKT)."""
    import shapely

    along = np.linspace(0, 1, EDGE_POINTS)
    ends = np.zeros_like(along)
    columns = width * np.concatenate([along, ends + 1, along[::-1], ends])
    rows = height * np.concatenate([ends, along, ends + 1, along[::-1]])
    return project(shapely.Polygon(np.stack(_to_map(transform, columns, rows), axis=1)), crs, target)


def project(shape: Any, crs: str | None, target: str | None) -> Any:
    """Project a geometry from `crs` to `target`, both WKT. Return it unchanged if either is unknown.

    Raises:
        DataError: no transformation exists between the two, for instance because one is a local CRS.
    """
    if crs == target or crs is None or target is None:
        return shape
    import shapely

    return shapely.transform(shape, _transformer(crs, target).transform, interleaved=False)


@functools.cache
def full_turn(crs: str | None) -> float | None:
    """Return 360 degrees in the unit of a geographic CRS (WKT), or None for other CRSs."""
    from pyproj import CRS as ProjCRS

    if crs is None or not (known := ProjCRS.from_wkt(crs)).is_geographic:
        return None
    return float(2 * np.pi / known.axis_info[0].unit_conversion_factor)


def turned(shape: Any, crs: str | None) -> "list[shapely.Geometry]":
    """Return a geometry and, in a geographic CRS, its copies a turn to the east and to the west."""
    import shapely.affinity

    turn = full_turn(crs)
    shifts = [0.0] if turn is None else [0.0, turn, -turn]
    return [shapely.affinity.translate(shape, by) if by else shape for by in shifts]


def reliable_bounds(
    shape: "shapely.Polygon", crs: str | None, target: str | None
) -> tuple[float, float, float, float] | None:
    """Return the bounds of an outline in another CRS; None if it is too large for that CRS.

    On most of the Earth a projection such as UTM has no coordinates, or the outline turns inside out.
    """
    import shapely

    there = project(shape, crs, target)
    if not np.isfinite(shapely.get_coordinates(there)).all():
        return None
    here = shapely.get_coordinates(shape)
    side, turn = float(np.ptp(here, axis=0).max()), full_turn(crs)
    if there is not shape:
        back = shapely.get_coordinates(project(there, target, crs)) - here
        if turn:
            back[:, 0] -= np.round(back[:, 0] / turn) * turn
        is_back = np.isfinite(back).all() and np.abs(back).max() <= side / 100
        if not is_back or (turn and side > turn / 12):  # above 30 degrees, a pole may be inside
            return None
    left, bottom, right, top = there.bounds
    return left, bottom, right, top


@functools.cache
def _transformer(crs: str, target: str) -> "Transformer":
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        return Transformer.from_crs(crs, target, always_xy=True)
    except ProjError as error:
        raise DataError(f"no transformation exists between the two CRSs: {error}") from error


def same_grid(one: DatasetReader, other: DatasetReader) -> bool:
    """Return whether two rasters have the same pixels, up to the rounding of their geotransforms."""
    if one.shape != other.shape or (one.crs and other.crs and one.crs != other.crs):
        return False
    columns, rows = (
        np.array(ends) for ends in ((0, one.width, 0, one.width), (0, 0, one.height, one.height))
    )
    back = _to_map(~one.transform, *_to_map(other.transform, columns, rows))
    return max(np.abs(back[0] - columns).max(), np.abs(back[1] - rows).max()) <= GRID_TOLERANCE


def window_transform(transform: Affine, left: int, top: int) -> Affine:
    """Return the transform of the window whose first pixel is at column `left` and row `top`."""
    x, y = _to_map(transform, np.array(left), np.array(top))
    return Affine(transform.a, transform.b, float(x), transform.d, transform.e, float(y))


def _to_map(transform: Affine, columns: Coordinates, rows: Coordinates) -> tuple[Coordinates, Coordinates]:
    """Return the map coordinates of pixel corners."""
    # Not affine's own operator, which differs between its versions.
    a, b, c, d, e, f = transform[:6]
    return a * columns + b * rows + c, d * columns + e * rows + f
