"""Open georeferenced rasters and read them in windows.

A path is anything that GDAL opens: a file, `/vsicurl/https://...`, `s3://...`. Every failure is a one-line
`DataError`.
"""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from ccsegformer.errors import DataError

PIXEL_DTYPES = ("uint8", "uint16", "int16", "float32")
RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2")
MASK = "_mask"
"""Suffix of the name of a scene's mask: `NAME_mask.tif` labels `NAME.tif`."""

GDAL_OPTIONS = {
    "GDAL_CACHEMAX": 64 * 2**20,  # bytes, as rasterio sets it; by default 5 % of the memory
    "GDAL_HTTP_MAX_RETRY": 3,  # after an HTTP status of 429 or 500 to 504
    "GDAL_HTTP_RETRY_DELAY": 1,  # seconds before the first retry; about doubles with each one
}
REMOTE_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}  # do not list remote folders


class Box(NamedTuple):
    """Window in pixels: rows `top` to `bottom` and columns `left` to `right`, both ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.right - self.left

    @property
    def window(self) -> Window:
        """The same window as a rasterio `Window`."""
        return Window(self.left, self.top, self.width, self.height)


def open_raster(path: str | Path) -> DatasetReader:
    """Open a raster for reading. The caller closes it, or uses it in a `with` statement.

    Raises:
        DataError: the file is missing, is not a raster, has no bands, or has pixels of a type other than
            `PIXEL_DTYPES`.
    """
    with gdal_options(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if not is_remote(path) and ":" not in str(path) and not Path(path).exists():
            raise DataError(f"{path}: no such file")
        try:
            source = rasterio.open(path)
            found = sorted(set(source.dtypes))
            _ = source.crs, source.transform, source.nodatavals, source.mask_flag_enums
        except Exception as error:  # a damaged header raises many types, some of them private to rasterio
            raise DataError(f"{path}: not a raster that can be read: {reason_of(error)}") from error
    problem = None
    if not image_bands(source):
        problem = "a raster without bands"
    elif len(found) > 1 or found[0] not in PIXEL_DTYPES:
        problem = f"values of {', '.join(found)}; convert them to one of {', '.join(PIXEL_DTYPES)}"
    if problem:
        source.close()
        raise DataError(f"{path}: {problem}")
    return source


def has_georeference(path: str | Path) -> bool:
    """Check whether a file is a raster with a CRS, a geotransform or ground control points."""
    try:
        with gdal_options(path), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as source:
                if len(source.gcps[0]) >= 3:  # fewer do not place the pixels
                    return True
                if source.driver == "PNM":  # has no geotransform, and rasterio returns memory instead
                    return bool(source.crs)
                if source.transform.is_identity:
                    return bool(source.crs)
                return spans_area(source.transform)
    except Exception:  # not a raster, or a damaged one
        return False


def spans_area(transform: rasterio.Affine) -> bool:
    """Return whether pixels have an area: the geotransform is finite and its axes are not parallel."""
    a, b, c, d, e, f = transform[:6]
    size = a * a + b * b + d * d + e * e
    return bool(np.isfinite([c, f, size]).all() and abs(a * e - b * d) > 1e-12 * size > 0)


def gdal_options(path: str | Path) -> rasterio.Env:
    """Return the GDAL settings under which to open and read `path`, as a context manager."""
    return rasterio.Env(**(GDAL_OPTIONS | (REMOTE_OPTIONS if is_remote(path) else {})))


def image_bands(source: DatasetReader) -> list[int]:
    """Return the numbers, from 1, of all bands except alpha.

    Raises:
        DataError: the raster is damaged.
    """
    try:
        colors = source.colorinterp
    except Exception as error:  # GDAL may not notice a damaged header before this
        raise DataError(f"{source.name}: not a raster that can be read: {reason_of(error)}") from error
    return [band for band, color in zip(source.indexes, colors, strict=True) if color != ColorInterp.alpha]


def read_box(
    source: DatasetReader, box: Box, bands: Sequence[int] | None = None
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Read the pixels (bands, H, W) of a box, in the raster's dtype, and a mask (H, W) of those with data.

    `bands` are the numbers, from 1, of the bands to read; by default all except alpha.

    A pixel has no data if it lies outside the raster, if the alpha or mask band is 0 there, if all bands have
    their nodata value, or if any of them is NaN or infinite. Pixels without data are returned as 0.

    Raises:
        DataError: the raster is damaged there or its server fails; the message names the rows and columns.
    """
    bands = list(image_bands(source) if bands is None else bands)
    values = np.zeros((len(bands), box.height, box.width), source.dtypes[0])
    valid = np.zeros((box.height, box.width), bool)
    inside = Box(
        max(box.top, 0), max(box.left, 0), min(box.bottom, source.height), min(box.right, source.width)
    )
    if inside.height <= 0 or inside.width <= 0:
        return values, valid
    target = (
        slice(inside.top - box.top, inside.bottom - box.top),
        slice(inside.left - box.left, inside.right - box.left),
    )
    values[:, *target], valid[target] = _read_window(source, bands, inside)
    values[:, ~valid] = 0
    return values, valid


def fill_gaps(values: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8 | np.float32]:
    """Convert the result of `read_box` to an image (bands, H, W) without gaps.

    Pixels without data get the mean of the others, band by band. uint8 stays uint8 and is changed in place;
    every other dtype becomes float32.
    """
    image: NDArray[np.uint8 | np.float32] = values.astype(
        np.uint8 if values.dtype == np.uint8 else np.float32, copy=False
    )
    if valid.any() and not valid.all():
        means = values[:, valid].mean(axis=1, dtype=np.float64)
        image[:, ~valid] = (means.round() if image.dtype == np.uint8 else means)[:, None]
    return image


def is_remote(path: str | Path) -> bool:
    """Return whether GDAL reads the path through one of its virtual file systems, usually over a network."""
    return str(path).startswith("/vsi") or "://" in str(path)


def reason_of(error: Exception) -> str:
    """Return the reason of a GDAL or operating system error on one line."""
    # rasterio chains GDAL's own message as the cause.
    return " ".join(str(getattr(error, "strerror", None) or error.__cause__ or error).split())


def _read_window(
    source: DatasetReader, bands: list[int], box: Box
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    try:
        with gdal_options(source.name):
            values = source.read(bands, window=box.window)
            return values, _valid_pixels(source, bands, values, box)
    except Exception as error:  # many types, as in `open_raster`
        place = f"rows {box.top}-{box.bottom - 1}, columns {box.left}-{box.right - 1}"
        raise DataError(f"{source.name}: {place} cannot be read: {reason_of(error)}") from error


def _valid_pixels(
    source: DatasetReader, bands: list[int], values: NDArray[np.generic], box: Box
) -> NDArray[np.bool_]:
    # GDAL's band masks cover the nodata values or, without them, the alpha or mask band. rasterio's
    # `dataset_mask` does the same but also takes alpha for an image band, and opaque for data.
    alpha = set(source.indexes) - set(image_bands(source))
    shadowed = warnings.catch_warnings(action="ignore", category=NodataShadowWarning)
    with shadowed if alpha else nullcontext():  # only then, as filters are common to all threads
        valid = source.read_masks(bands, window=box.window).any(axis=0)
    for band in alpha:
        valid &= source.read(band, window=box.window) > 0
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    return valid
