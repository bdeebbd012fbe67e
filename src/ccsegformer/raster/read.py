"""Georeferenced rasters, read window by window through rasterio; whatever goes wrong is one line.

A path is anything GDAL opens: a file, `/vsicurl/https://...`, `s3://...`.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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

DTYPES = ("uint8", "uint16", "int16", "float32")

RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2")
MASK = "_mask"
"""What the name of a scene's mask ends with."""

GDAL_OPTIONS = {
    "GDAL_CACHEMAX": 64,  # MB: by default GDAL takes a twentieth of the machine
    "GDAL_HTTP_MAX_RETRY": 3,  # after an HTTP status of 429 or 500 to 504
    "GDAL_HTTP_RETRY_DELAY": 1,  # seconds before the first retry; about doubles with each one
}
REMOTE_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}  # a remote folder may be long


class Box(NamedTuple):
    """A window in pixels: rows `top` to `bottom`, columns `left` to `right`, ends not included."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """In pixels."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """In pixels."""
        return self.right - self.left

    @property
    def window(self) -> Window:
        """As rasterio has it."""
        return Window(self.left, self.top, self.width, self.height)


@contextmanager
def open_raster(path: str | Path) -> Iterator[DatasetReader]:
    """Open a raster to be read.

    Raises:
        DataError: missing, not a raster, without bands, or with values of a type that no network takes.
    """
    with gdal_options(path), hold_raster(path) as source:
        yield source


def hold_raster(path: str | Path) -> DatasetReader:
    """Open a raster to be read as long as wanted, each time under `gdal_options`; whoever asks closes it.

    Raises:
        DataError: as `open_raster`.
    """
    with gdal_options(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if not is_remote(path) and not Path(path).exists():
            raise DataError(f"{path}: no such file")
        try:
            source = rasterio.open(path)
            found = sorted(set(source.dtypes))
            _ = source.crs, source.transform, source.nodatavals, source.mask_flag_enums
        except Exception as error:  # a damaged header shows in many kinds, some of them rasterio's own secret
            raise DataError(f"{path}: not a raster that can be read: {reason_of(error)}") from error
    problem = None
    if not image_bands(source):
        problem = "a raster without bands"
    elif len(found) > 1 or found[0] not in DTYPES:
        problem = f"values of {', '.join(found)}; convert them to one of {', '.join(DTYPES)}"
    if problem:
        source.close()
        raise DataError(f"{path}: {problem}")
    return source


def gdal_options(path: str | Path) -> rasterio.Env:
    """GDAL's settings while `path` is opened or read."""
    return rasterio.Env(**(GDAL_OPTIONS | (REMOTE_OPTIONS if is_remote(path) else {})))


def image_bands(source: DatasetReader) -> list[int]:
    """The numbers, from 1, of the bands that are not alpha.

    Raises:
        DataError: the raster is damaged.
    """
    try:
        colors = source.colorinterp
    except Exception as error:  # GDAL's complaints about a header may come up as late as this
        raise DataError(f"{source.name}: not a raster that can be read: {reason_of(error)}") from error
    return [band for band, what in zip(source.indexes, colors, strict=True) if what != ColorInterp.alpha]


def read_box(source: DatasetReader, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """The values (bands, H, W) of a box, in the raster's own type, and which pixels (H, W) have data.

    A pixel has no data where it lies outside the raster, where alpha or a mask band is 0, where every band
    has the nodata value, and where one of them is NaN or infinite. Values are 0 there.

    Raises:
        DataError: the raster is damaged there, or a remote one does not answer; the message names the rows.
    """
    bands = image_bands(source)
    values = np.zeros((len(bands), box.height, box.width), source.dtypes[0])
    valid = np.zeros((box.height, box.width), bool)
    inside = Box(
        max(box.top, 0), max(box.left, 0), min(box.bottom, source.height), min(box.right, source.width)
    )
    if inside.height <= 0 or inside.width <= 0:
        return values, valid
    there = (
        slice(inside.top - box.top, inside.bottom - box.top),
        slice(inside.left - box.left, inside.right - box.left),
    )
    values[:, *there], valid[there] = _read(source, bands, inside)
    values[:, ~valid] = 0
    return values, valid


def fill_gaps(values: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8 | np.float32]:
    """Make the values (bands, H, W) of `read_box` an image: uint8, or float32 where they are not.

    A pixel without data gets the mean of those that have them, band by band; uint8 is changed in place.
    """
    image: NDArray[np.uint8 | np.float32] = values.astype(
        np.uint8 if values.dtype == np.uint8 else np.float32, copy=False
    )
    if valid.any() and not valid.all():
        means = values[:, valid].mean(axis=1, dtype=np.float64)
        image[:, ~valid] = (means.round() if image.dtype == np.uint8 else means)[:, None]
    return image


def is_remote(path: str | Path) -> bool:
    """Whether GDAL reads it through a file system of its own, mostly over a network."""
    return str(path).startswith("/vsi") or "://" in str(path)


def reason_of(error: Exception) -> str:
    """GDAL's own words in one line; rasterio keeps them in the cause."""
    return " ".join(str(error.__cause__ or error).split())


def _read(source: DatasetReader, bands: list[int], box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    try:
        with gdal_options(source.name):
            values = source.read(bands, window=box.window)
            return values, _valid(source, bands, values, box)
    except Exception as error:  # as above
        place = f"rows {box.top}-{box.bottom - 1}, columns {box.left}-{box.right - 1}"
        raise DataError(f"{source.name}: {place} cannot be read: {reason_of(error)}") from error


def _valid(
    source: DatasetReader, bands: list[int], values: NDArray[np.generic], box: Box
) -> NDArray[np.bool_]:
    # GDAL's band masks cover the nodata values or, without them, the alpha or mask band. rasterio's
    # `dataset_mask` does the same but also takes alpha for an image band, and opaque for data.
    alpha = set(source.indexes) - set(bands)
    shadowed = warnings.catch_warnings(action="ignore", category=NodataShadowWarning)
    with shadowed if alpha else nullcontext():  # only then, as filters are common to all threads
        valid = source.read_masks(bands, window=box.window).any(axis=0)
    for band in alpha:
        valid &= source.read(band, window=box.window) > 0
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    return valid
