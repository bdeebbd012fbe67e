"""Places of pixels on the ground by control points or RPCs, for rasters without a geotransform."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.rpc import RPC
from rasterio.transform import GCPTransformer, RPCTransformer

from ccsegformer.errors import DataError
from ccsegformer.raster.source_files import gdal_options

LEAST_POINTS = 3
"""Number of control points that place a raster."""
RPC_ERROR = 1e-3
"""Largest distance, in pixels, between a pixel and the place on the ground that RPCs give it."""


class Placement(NamedTuple):
    """Control points, or RPCs at their mean height, and the CRS of the places that they give."""

    name: str
    """Name of the raster, for messages."""
    points: list[GroundControlPoint]
    rpcs: RPC | None
    crs: CRS | None

    def to_map(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the places (N, 2) of pixel coordinates (N, 2): x to the right and y downwards.

        Raises:
            DataError: a pixel has no place.
        """
        columns, rows = pixels.T
        try:
            with gdal_options(self.name), self._transformer() as transformer:
                heights = np.full(len(pixels), self.rpcs.height_off if self.rpcs else 0.0)
                places = np.column_stack(transformer.xy(rows, columns, heights, offset="ul"))
        except Exception as error:  # many types, as in `open_raster`
            raise DataError(f"{self.name}: its {self._means} place no pixels: {error}") from error
        if not np.isfinite(places).all():
            column, row = pixels[~np.isfinite(places).all(axis=1)][0]
            raise DataError(f"{self.name}: its {self._means} do not place row {row:g}, column {column:g}")
        return places

    def mean_transform(self, width: int, height: int) -> Affine:
        """Return the geotransform that leads from edge to edge through the middle of the raster.

        Raises:
            DataError: as `to_map`, or the pixels have no area.
        """
        x, y = width / 2, height / 2
        left, right, top, bottom = self.to_map(np.array([(0, y), (width, y), (x, 0), (x, height)], float))
        (a, d), (b, e) = (right - left) / width, (bottom - top) / height
        if a * e == b * d:
            raise DataError(f"{self.name}: its {self._means} give pixels no area")
        corner = (left + right) / 2 - (a * x + b * y, d * x + e * y)
        return Affine(a, b, corner[0], d, e, corner[1])

    def _transformer(self) -> GCPTransformer | RPCTransformer:
        if self.rpcs is None:
            return GCPTransformer(self.points)
        return RPCTransformer(self.rpcs, RPC_PIXEL_ERROR_THRESHOLD=RPC_ERROR)

    @property
    def _means(self) -> str:
        return "control points" if self.rpcs is None else "RPCs"


def placement(source: DatasetReader) -> Placement | None:
    """Return how control points, or else RPCs, place a raster; None if neither do."""
    points, crs = source.gcps
    if len(points) >= LEAST_POINTS:
        return Placement(source.name, points, None, crs)
    return Placement(source.name, [], source.rpcs, CRS.from_epsg(4326)) if source.rpcs else None
