"""Pictures of rasters for a map in the browser: tiles of 256 pixels, in Web Mercator or as the pixels lie."""

import math
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform_bounds

from ccsegformer.errors import DataError
from ccsegformer.raster.georeference import is_georeferenced
from ccsegformer.raster.read import image_bands, open_raster
from ccsegformer.raster.source_files import gdal_options

TILE_SIDE = 256
EARTH = 2 * math.pi * 6378137.0
"""Width of the Web Mercator map in metres (EPSG:3857)."""
MERCATOR = "EPSG:3857"
LATITUDES = (-85.0, 85.0)
LARGEST_ZOOM = 24
KNOTS = 17
"""Points a side at which a tile is projected; between them positions are interpolated."""
SAMPLE_SIDE = 1024
"""Side of the reduced image from which the contrast of a scene is taken."""
LARGE_PIXELS = 64_000_000
"""Above, and without overviews, the contrast is that of the middle of the scene."""
READING = threading.Lock()
"""One reader at a time: GDAL's and Python's warning filters are shared by all threads."""

Color4 = NDArray[np.uint8]
"""Red, green, blue and alpha: (rows, columns, 4)."""


class TileGrid(NamedTuple):
    """How the tiles of a raster are numbered.

    Tile (z, x, y) covers 256 x 256 world pixels of zoom z. At `zoom`, about one pixel of the raster is one of
    the world; each zoom less halves the world.

    Attributes:
        kind: `mercator` for the tiles of web maps, or `pixels` for a raster without a usable position.
        zoom: largest zoom.
        bounds: left, top, right and bottom of the raster in world pixels at `zoom`.
    """

    kind: str
    zoom: int
    bounds: tuple[float, float, float, float]

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return self._asdict()

    def positions(self, source: DatasetReader, x: Any, y: Any, zoom: float) -> tuple[Any, Any]:
        """Return columns and rows of the raster at world pixels (N,) of a zoom; infinite where none are."""
        if self.kind == "pixels":
            scale = 2.0 ** (self.zoom - zoom)
            return np.asarray(x) * scale, np.asarray(y) * scale
        world = TILE_SIDE * 2.0**zoom
        east, north = (np.asarray(x) / world - 0.5) * EARTH, (0.5 - np.asarray(y) / world) * EARTH
        across, along = _from_mercator(source.crs.to_wkt()).transform(east, north)
        a, b, c, d, e, f = (~source.transform)[:6]
        with np.errstate(invalid="ignore", over="ignore"):  # infinite where the CRS does not reach
            return a * across + b * along + c, d * across + e * along + f


@lru_cache(maxsize=16)
def _from_mercator(crs: str) -> Transformer:
    return Transformer.from_crs(MERCATOR, crs, always_xy=True)


def tile_grid(source: DatasetReader) -> TileGrid:
    """Choose the grid of a raster: Web Mercator if it has a CRS and lies where that map reaches."""
    height, width = source.shape
    if source.crs and is_georeferenced(source):
        try:
            west, south, east, north = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
            bounds = transform_bounds(source.crs, MERCATOR, *source.bounds)
            _from_mercator(source.crs.to_wkt())
        except (RasterioError, CPLE_BaseError, ProjError, ValueError):
            bounds = (math.inf,) * 4
        on_map = np.isfinite(bounds).all() and west < east and LATITUDES[0] < south < north < LATITUDES[1]
        if on_map:
            metres = max((bounds[2] - bounds[0]) / width, (bounds[3] - bounds[1]) / height)
            zoom = min(LARGEST_ZOOM, max(0, math.ceil(math.log2(EARTH / TILE_SIDE / metres))))
            world = TILE_SIDE * 2**zoom
            left, right = ((side / EARTH + 0.5) * world for side in (bounds[0], bounds[2]))
            bottom, top = ((0.5 - side / EARTH) * world for side in (bounds[1], bounds[3]))
            return TileGrid("mercator", zoom, (left, top, right, bottom))
    zoom = max(0, math.ceil(math.log2(max(height, width) / TILE_SIDE)))
    return TileGrid("pixels", zoom, (0.0, 0.0, float(width), float(height)))


def contrast(source: DatasetReader) -> list[tuple[int, float, float]]:
    """Return three bands to show as red, green and blue, each with its darkest and brightest value.

    8-bit bands keep their values; of others, the 2nd to 98th percentile fills the range.
    """
    bands = image_bands(source)
    shown = bands[:3] if len(bands) >= 3 else [bands[0]] * 3
    if source.dtypes[0] == "uint8":
        return [(band, 0.0, 255.0) for band in shown]
    height, width = source.shape
    size = (min(height, SAMPLE_SIDE), min(width, SAMPLE_SIDE))
    whole = rasterio.windows.Window(0, 0, width, height)
    middle = rasterio.windows.Window((width - size[1]) // 2, (height - size[0]) // 2, *size[::-1])
    is_slow = height * width > LARGE_PIXELS and not source.overviews(shown[0])
    window = middle if is_slow else whole
    found = []
    with gdal_options(source.name):
        inside = source.dataset_mask(window=window, out_shape=size) > 0
        for band in shown:
            values = source.read(band, window=window, out_shape=size)[inside]
            values = values[np.isfinite(values)]
            low, high = np.percentile(values, (2, 98)).tolist() if values.size else (0.0, 1.0)
            found.append((band, low, max(high, low + 1e-9)))
    return found


def scene_tile(
    path: Path, grid: TileGrid, bands: list[tuple[int, float, float]], z: int, x: int, y: int
) -> Color4:
    """Draw a tile of a scene; transparent where it has no data."""
    with READING, open_raster(path) as source:
        numbers = [band for band, _, _ in bands]
        values, inside = _sample(source, grid, numbers, z, x, y)
    picture = np.zeros((TILE_SIDE, TILE_SIDE, 4), np.uint8)
    for channel, (_, low, high) in enumerate(bands):
        with np.errstate(invalid="ignore"):
            level = (values[channel].astype(np.float32) - low) * (255 / (high - low))
        picture[..., channel] = np.nan_to_num(level).clip(0, 255).round()
    picture[..., 3] = 255 * inside
    return picture


def map_tile(path: Path, grid: TileGrid, palette: tuple[Any, ...], z: int, x: int, y: int) -> Color4:
    """Draw a tile of a map in the colours of the classes; transparent where there is no class (yet)."""
    with READING, open_raster(path) as source:
        (labels,), inside = _sample(source, grid, [1], z, x, y)
    table = np.array([(*color, 255) for color in palette] + [(0, 0, 0, 0)], np.uint8)
    picture: Color4 = table[np.where(inside & (labels < len(palette)), labels, len(palette))]
    return picture


def map_value(path: Path, grid: TileGrid, x: float, y: float) -> tuple[int, float] | None:
    """Return class and probability at a world pixel of the largest zoom; None where there is no class."""
    with READING, open_raster(path) as source:
        columns, rows = grid.positions(source, [x], [y], grid.zoom)
        if not (0 <= columns[0] < source.width and 0 <= rows[0] < source.height):
            return None
        window = rasterio.windows.Window(int(columns[0]), int(rows[0]), 1, 1)
        label, sure = source.read([1, 2], window=window)[:, 0, 0].tolist()
        return None if label == source.nodata else (label, sure * source.scales[1])


def tile_outline(source: DatasetReader, grid: TileGrid, z: int, x: int, y: int) -> tuple[Any, Any]:
    """Return columns and rows (17, 17) of the raster at points of a tile."""
    if not (0 <= z <= LARGEST_ZOOM and 0 <= x < 2**LARGEST_ZOOM and 0 <= y < 2**LARGEST_ZOOM):
        raise DataError(f"tile {z}/{x}/{y}: there is none")
    steps = np.linspace(0, TILE_SIDE, KNOTS)
    across, down = np.meshgrid(x * TILE_SIDE + steps, y * TILE_SIDE + steps)
    columns, rows = grid.positions(source, across.ravel(), down.ravel(), z)
    return columns.reshape(KNOTS, KNOTS), rows.reshape(KNOTS, KNOTS)


def _sample(
    source: DatasetReader, grid: TileGrid, bands: list[int], z: int, x: int, y: int
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read the nearest values (bands, 256, 256) of a tile, and where there are any.

    GDAL reads no more pixels than about one for each of the tile's, from overviews if there are some.
    """
    values = np.zeros((len(bands), TILE_SIDE, TILE_SIDE), source.dtypes[0])
    inside = np.zeros((TILE_SIDE, TILE_SIDE), bool)
    columns, rows = (_between(knots) for knots in tile_outline(source, grid, z, x, y))
    with np.errstate(invalid="ignore"):
        there = (columns >= 0) & (columns < source.width) & (rows >= 0) & (rows < source.height)
    if not there.any():
        return values, inside
    left, right = int(columns[there].min()), int(columns[there].max()) + 1
    top, bottom = int(rows[there].min()), int(rows[there].max()) + 1
    window = rasterio.windows.Window(left, top, right - left, bottom - top)
    step = max(1.0, max(right - left, bottom - top) / (2 * TILE_SIDE))
    shape = math.ceil((bottom - top) / step), math.ceil((right - left) / step)
    try:
        with gdal_options(source.name):
            read = source.read(bands, window=window, out_shape=(len(bands), *shape))
            mask = source.dataset_mask(window=window, out_shape=shape) > 0
    except Exception as error:  # GDAL raises many types
        raise DataError(f"{Path(source.name).name}: cannot be read here") from error
    if read.dtype.kind == "f":
        mask &= np.isfinite(read).all(axis=0)
    down = ((rows[there] - top) / (bottom - top) * shape[0]).astype(int).clip(0, shape[0] - 1)
    across = ((columns[there] - left) / (right - left) * shape[1]).astype(int).clip(0, shape[1] - 1)
    values[:, there], inside[there] = read[:, down, across], mask[down, across]
    return values, inside


def _between(knots: NDArray[np.floating]) -> NDArray[np.floating]:
    """Interpolate (17, 17) linearly to the centres of a tile's pixels, (256, 256)."""
    centres = (np.arange(TILE_SIDE) + 0.5) / TILE_SIDE * (KNOTS - 1)
    first = centres.astype(int).clip(max=KNOTS - 2)
    part = centres - first
    with np.errstate(invalid="ignore"):
        wide = knots[:, first] * (1 - part) + knots[:, first + 1] * part
        full: NDArray[np.floating] = wide[first] * (1 - part[:, None]) + wide[first + 1] * part[:, None]
    return full
