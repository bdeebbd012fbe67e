"""Transform polygons from pixels to the map, and compute their areas on the ellipsoid."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from rasterio import Affine
from rasterio.io import DatasetReader

from ccsegformer.raster.georeference import is_georeferenced
from ccsegformer.raster.placement import Placement, placement

METRES_OF_DEGREE = 111_320
"""Length of a degree of the equator."""
MAX_SEGMENT = 1000.0
"""Largest distance, in metres, between the vertices of a line that is transformed to the ellipsoid."""
PLACED_SEGMENT = 4.0
"""Largest distance, in pixels, between the vertices of a line that control points or RPCs place."""


@dataclass(frozen=True)
class MapGeometry:
    """Transformation from pixels (x to the right, y downwards) to the map and from there to the ellipsoid."""

    transform: Affine
    """Geotransform; with a `placement`, the mean one."""
    width: int
    height: int
    crs: CRS | None
    """CRS, or None if there is none or it is not geographic or projected, as a local one."""
    area_name: str
    """Name of the column of areas, which tells their unit."""
    placement: Placement | None = None
    """Control points or RPCs instead of a geotransform."""

    def to_map(self, polygons: NDArray[np.object_]) -> NDArray[np.object_]:
        """Transform polygons (N,) from pixels to the map, with counterclockwise outlines."""
        return shapely.orient_polygons(shapely.transform(polygons, self._points_to_map))

    def to_map_densified(self, polygons: NDArray[np.object_]) -> NDArray[np.object_]:
        """Add vertices, as straight lines may be curves on the map or on the Earth, and do as `to_map`."""
        segment = PLACED_SEGMENT if self.placement else np.inf
        if self.crs is not None and np.isfinite(self._pixel):
            segment = min(segment, MAX_SEGMENT / self._pixel)
        return self.to_map(shapely.segmentize(polygons, segment) if np.isfinite(segment) else polygons)

    def areas(self, polygons: NDArray[np.object_]) -> NDArray[np.float64]:
        """Compute the areas (N,) of polygons from `to_map_densified`: m2 on the ellipsoid, or map units."""
        if self.crs is None:
            return shapely.area(polygons)
        areas = self._orientation * self._signed_areas(polygons)
        # If a polygon covers more than half the Earth, pyproj returns minus the area of the rest.
        return np.where(areas < 0, areas + self._earth, areas)

    def _signed_areas(self, polygons: NDArray[np.object_]) -> NDArray[np.float64]:
        """Compute areas in m2, negative for outlines that are clockwise on the Earth."""
        outlines = shapely.transform(polygons, self._points_to_ellipsoid)
        signed = [self._geod.geometry_area_perimeter(outline, radians=True)[0] for outline in outlines]
        return np.array(signed, np.float64)

    def _points_to_map(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.placement:
            return self.placement.to_map(points)
        a, b, c, d, e, f = self.transform[:6]
        x, y = points.T
        return np.column_stack([a * x + b * y + c, d * x + e * y + f])

    def _points_to_ellipsoid(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return longitude and latitude in radians."""
        projection, unit = self._projection
        return np.column_stack(projection.transform(*points.T)) * unit

    @cached_property
    def _projection(self) -> tuple[Transformer, float]:
        """Transformer to longitude and latitude on the CRS's own datum, and their unit in radians."""
        assert self.crs is not None and self.crs.geodetic_crs is not None
        degrees = self.crs.geodetic_crs
        unit = degrees.axis_info[0].unit_conversion_factor
        return Transformer.from_crs(self.crs, degrees, always_xy=True), unit

    @cached_property
    def _geod(self) -> Geod:
        geod = self.crs.get_geod() if self.crs else None
        assert geod is not None
        return geod

    @cached_property
    def _pixel(self) -> float:
        """Longest side of a pixel in metres, from a sample of 9 x 9 pixels."""
        x, y = np.meshgrid(np.linspace(0, self.width - 1, 9), np.linspace(0, self.height - 1, 9))
        corner = np.column_stack([x.ravel(), y.ravel()])
        lon, lat = self._points_to_ellipsoid(self._points_to_map(corner)).T
        sides = []
        for step in ((1, 0), (0, 1)):
            end = self._points_to_ellipsoid(self._points_to_map(corner + step)).T
            sides.append(self._geod.inv(lon, lat, end[0], end[1], radians=True)[2])
        finite = np.array(sides)[np.isfinite(sides)]
        return float(finite.max()) if len(finite) else np.inf

    @cached_property
    def decimals(self) -> int:
        """Decimals of degrees, at least 7, that give a thousandth of a pixel."""
        a, b, _, d, e, _ = self.transform[:6]
        side = float(min(np.hypot(a, d), np.hypot(b, e)))
        if self.crs is None or not np.isfinite(side):
            return 7
        if self.crs.is_geographic:
            degrees = np.rad2deg(side * self.crs.axis_info[0].unit_conversion_factor)
        else:
            degrees = side * self.crs.axis_info[0].unit_conversion_factor / METRES_OF_DEGREE
        return int(np.clip(np.ceil(3 - np.log10(degrees)), 7, 15))

    @cached_property
    def _orientation(self) -> float:
        """1, or -1 if a counterclockwise outline on the map is clockwise on the Earth."""
        middle = shapely.Point(self.width // 2, self.height // 2).buffer(0.5)
        return float(np.sign(self._signed_areas(self.to_map(np.array([middle], object)))[0]))

    @property
    def _earth(self) -> float:
        """Area of the ellipsoid in m2."""
        quarters = np.deg2rad([0, 90, 180, 270])
        return 2 * abs(self._geod.polygon_area_perimeter(quarters, np.zeros(4), radians=True)[0])


def map_geometry(source: DatasetReader) -> MapGeometry:
    """Return the transformation that an open raster's geotransform, control points or RPCs and CRS define.

    Raises:
        DataError: its control points or RPCs do not place it.
    """
    size = source.width, source.height
    placed = None if is_georeferenced(source) else placement(source)
    if placed is None and not is_georeferenced(source):  # y = -row, as in QGIS
        return MapGeometry(Affine.scale(1, -1), *size, None, "area_pixels")
    transform = placed.mean_transform(*size) if placed else source.transform
    own = placed.crs if placed else source.crs
    crs = CRS.from_wkt(own.to_wkt()) if own else None
    if crs is None or crs.geodetic_crs is None:
        return MapGeometry(transform, *size, None, "area_map_units", placed)
    return MapGeometry(transform, *size, crs, "area_m2", placed)
