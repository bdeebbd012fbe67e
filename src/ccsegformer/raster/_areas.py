"""Where the pixels of a raster lie on the Earth, and how large what is drawn on them is there."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from rasterio import Affine
from rasterio.io import DatasetReader

LINE = 1000.0
"""How long in metres a line may be that is carried from the map to the ellipsoid by its ends alone."""


@dataclass(frozen=True)
class Ground:
    """From pixels (x to the right, y downwards) to the map, and from there to the ellipsoid."""

    transform: Affine
    width: int
    height: int
    crs: CRS | None  # None too where it is not one on the Earth
    area_name: str

    def place(self, polygons: NDArray[np.object_]) -> NDArray[np.object_]:
        """Polygons (N,) of pixels on the map, their outlines counterclockwise."""
        return shapely.orient_polygons(shapely.transform(polygons, self._to_map))

    def place_densely(self, polygons: NDArray[np.object_]) -> NDArray[np.object_]:
        """As `place`, with a vertex every `LINE`: what is straight on the map may not be so on the Earth."""
        if self.crs is None or not np.isfinite(self._pixel):
            return self.place(polygons)
        return self.place(shapely.segmentize(polygons, LINE / self._pixel))

    def areas(self, polygons: NDArray[np.object_]) -> NDArray[np.float64]:
        """Areas (N,) of polygons from `place_densely`: in m2 on the ellipsoid, without CRS in map units."""
        if self.crs is None:
            return shapely.area(polygons)
        areas = self._turn * self._signed_areas(polygons)
        # Of what covers over half the Earth, geodesy gives the other side, with the opposite sign.
        return np.where(areas < 0, areas + self._earth, areas)

    def _signed_areas(self, polygons: NDArray[np.object_]) -> NDArray[np.float64]:
        """In m2, negative where an outline is clockwise on the Earth."""
        outlines = shapely.transform(polygons, self._to_ellipsoid)
        signed = [self._geod.geometry_area_perimeter(outline, radians=True)[0] for outline in outlines]
        return np.array(signed, np.float64)

    def _to_map(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        a, b, c, d, e, f = self.transform[:6]
        x, y = points.T
        return np.column_stack([a * x + b * y + c, d * x + e * y + f])

    def _to_ellipsoid(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Longitude and latitude in radians."""
        projection, unit = self._projection
        return np.column_stack(projection.transform(*points.T)) * unit

    @cached_property
    def _projection(self) -> tuple[Transformer, float]:
        """To longitude and latitude on the CRS' own datum, and their unit in radians."""
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
        """The longest side of a pixel in metres, of some all over the raster."""
        x, y = np.meshgrid(np.linspace(0, self.width - 1, 9), np.linspace(0, self.height - 1, 9))
        corner = np.column_stack([x.ravel(), y.ravel()])
        lon, lat = self._to_ellipsoid(self._to_map(corner)).T
        sides = []
        for step in ((1, 0), (0, 1)):
            end = self._to_ellipsoid(self._to_map(corner + step)).T
            sides.append(self._geod.inv(lon, lat, end[0], end[1], radians=True)[2])
        finite = np.array(sides)[np.isfinite(sides)]
        return float(finite.max()) if len(finite) else np.inf

    @cached_property
    def _turn(self) -> float:
        """1, or -1 where the map's axes are such that counterclockwise on it is clockwise on the Earth."""
        middle = shapely.Point(self.width // 2, self.height // 2).buffer(0.5)
        return float(np.sign(self._signed_areas(self.place(np.array([middle], object)))[0]))

    @property
    def _earth(self) -> float:
        """The area of the ellipsoid in m2."""
        quarters = np.deg2rad([0, 90, 180, 270])
        return 2 * abs(self._geod.polygon_area_perimeter(quarters, np.zeros(4), radians=True)[0])


def find_ground(source: DatasetReader) -> Ground:
    """Where an open raster lies, by its geotransform and its CRS."""
    transform = source.transform
    if transform.is_identity:  # no georeference: rows count downwards, as QGIS draws such a raster
        return Ground(Affine.scale(1, -1), source.width, source.height, None, "area_pixels")
    crs = CRS.from_wkt(source.crs.to_wkt()) if source.crs else None
    if crs is None or crs.geodetic_crs is None:
        return Ground(transform, source.width, source.height, None, "area_map_units")
    return Ground(transform, source.width, source.height, crs, "area_m2")
