"""Outlines of rasters in longitude and latitude, as RFC 7946 has them: cut at the antimeridian."""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.io import DatasetReader
from rasterio.transform import from_gcps
from shapely.geometry import mapping

from ccsegformer.errors import DataError
from ccsegformer.raster._areas import map_geometry
from ccsegformer.raster.georeference import is_georeferenced, outline

WGS84 = CRS("OGC:CRS84").to_wkt()
CIRCLE = 360.0


def geometry_of(source: DatasetReader) -> dict[str, Any] | None:
    """Return a raster's outline on WGS 84 as GeoJSON; None if it has none, or reaches beyond the Earth."""
    ring = _ring(source)
    if ring is None or not np.isfinite(ring).all():
        return None
    shape = _cut_at_antimeridian(_closed(_unrolled(ring)))
    decimals = map_geometry(source).decimals
    shape = shapely.transform(shape, lambda points: np.round(points, decimals))
    # Within a tenth of a pixel, or a metre, of the outline.
    shape = shapely.orient_polygons(shapely.simplify(shape, 10.0 ** (2 - decimals)))
    return _as_lists(mapping(shape)) if shape.area > 0 else None


def bbox_of(geometry: dict[str, Any] | None) -> list[float] | None:
    """Return west, south, east and north; west is above east if the antimeridian is between them."""
    if geometry is None:
        return None
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    boxes = np.array([shapely.Polygon(part[0]).bounds for part in parts])
    west, south = boxes[:, :2].min(axis=0)
    east, north = boxes[:, 2:].max(axis=0)
    if west == -CIRCLE / 2 and east == CIRCLE / 2 and (boxes[:, 2] - boxes[:, 0] < CIRCLE).all():
        behind = boxes[:, 0] == west
        west, east = boxes[~behind, 0].min(initial=east), boxes[behind, 2].max()
    return [float(side) for side in (west, south, east, north)]


def _ring(source: DatasetReader) -> NDArray[np.float64] | None:
    """Return the longitudes and latitudes (N, 2) of an outline's corners, the first again at the end."""
    transform, crs = source.transform, source.crs
    if not is_georeferenced(source):
        points, crs = source.gcps
        if len(points) < 3:
            return None
        transform = from_gcps(points)
    if not crs:
        return None
    try:
        shape = outline(transform, source.width, source.height, crs.to_wkt(), WGS84)
    except DataError:  # a local CRS, or one of another body
        return None
    return shapely.get_coordinates(shape)


def _unrolled(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Let longitudes run on beyond 180 degrees where the outline crosses the antimeridian."""
    steps = np.diff(ring[:, 0])
    turns = np.concatenate([[0], np.cumsum(np.round(steps / CIRCLE))])
    return np.column_stack([ring[:, 0] - CIRCLE * turns, ring[:, 1]])


def _closed(ring: NDArray[np.float64]) -> shapely.Polygon:
    """Return the area inside an outline, up to the pole if the outline runs around it."""
    if abs(ring[-1, 0] - ring[0, 0]) > CIRCLE / 2:
        pole = np.copysign(90.0, ring[:, 1].mean())
        ring = np.vstack([ring, [[ring[-1, 0], pole], [ring[0, 0], pole]]])
    return shapely.make_valid(shapely.Polygon(ring))


def _cut_at_antimeridian(shape: shapely.Geometry) -> shapely.Geometry:
    """Cut at the antimeridian, and move the parts to between -180 and 180 degrees."""
    west, _, east, _ = shape.bounds
    parts = []
    for turn in range(int(np.floor((west + 180) / CIRCLE)), int(np.ceil((east + 180) / CIRCLE))):
        strip = shapely.box(turn * CIRCLE - 180, -90, turn * CIRCLE + 180, 90)
        part = shapely.intersection(shape, strip)
        parts.append(shapely.transform(part, lambda points, by=turn * CIRCLE: points - [by, 0]))
    polygons = [one for one in shapely.get_parts(shapely.get_parts(parts)) if one.geom_type == "Polygon"]
    return shapely.union_all(polygons)


def _as_lists(geometry: dict[str, Any]) -> dict[str, Any]:
    def listed(value: Any) -> Any:
        return [listed(part) for part in value] if isinstance(value, tuple) else value

    return {"type": geometry["type"], "coordinates": listed(geometry["coordinates"])}
