"""Open georeferenced rasters and read them in windows.

A path is anything that GDAL opens: a file, `/vsicurl/https://...`, `s3://...`. Every failure is a one-line
`DataError`.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from ccsegformer.errors import DataError
from ccsegformer.raster.source_files import absurd_size, gdal_options, is_over_network, is_remote

PIXEL_DTYPES = ("uint8", "uint16", "int16", "float32")
RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img")
MASK = "_mask"
"""Suffix of the name of a scene's mask: `NAME_mask.tif` or `NAME_mask.png` labels `NAME.tif`."""
SCENE_MASK_SUFFIXES = (*RASTER_SUFFIXES, ".png")

MASK_DTYPES = (*PIXEL_DTYPES, "int8", "uint32", "int32", "uint64", "int64", "float64")
"""Types of class ids. Those of floats must be whole numbers."""
ALPHA_VALUES = 64
"""Number of different values from which an alpha band is taken for an image band, such as near infrared."""
SAMPLE = 256
"""Side, in pixels, of the reduced image of an alpha band in which its values are counted."""
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
COLOUR = (0, 65535)
"""Range of nodata values that one band alone may hold without being empty, as black does."""


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


def open_raster(path: str | Path, dtypes: Sequence[str] = PIXEL_DTYPES) -> DatasetReader:
    """Open a raster for reading. The caller closes it, or uses it in a `with` statement.

    Raises:
        DataError: the file is missing, is not a raster, has no bands, has pixels of a type other than
            `dtypes`, or declares far more pixels than its files can hold.
    """
    with gdal_options(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if not is_remote(path) and not Path(path).exists():
            raise DataError(f"{path}: no such file")
        try:
            source = rasterio.open(path)
            found = sorted(set(source.dtypes))
            _ = source.crs, source.transform, source.nodatavals, source.mask_flag_enums
        except Exception as error:  # a damaged header raises many types, some of them private to rasterio
            reason = reason_of(error)
            if is_over_network(path) and "not recognized" in reason:  # GDAL says no more of a failed request
                reason = f"its server failed, or {reason}"
            raise DataError(f"{path}: not a raster that can be read: {reason}") from error
    problem = None
    if not image_bands(source):
        problem = "a raster without bands"
        if inner := source.subdatasets:
            problem = f"holds {len(inner)} rasters; name one of them: {', '.join(inner[:5])}"
    elif len(found) > 1 or found[0] not in dtypes:
        problem = f"values of {', '.join(found)}; convert them to one of {', '.join(dtypes)}"
    else:
        problem = absurd_size(source)
    if problem:
        source.close()
        raise DataError(f"{path}: {problem}")
    return source


def has_georeference(path: str | Path) -> bool:
    """Check whether a file is a raster with a CRS, a geotransform, ground control points or RPCs."""
    try:
        with gdal_options(path), warnings.catch_warnings(), _quiet_hdf5(path):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as source:
                if len(source.gcps[0]) >= 3 or source.rpcs:  # fewer do not place the pixels
                    return True
                if source.driver == "PNM":  # has no geotransform, and rasterio returns memory instead
                    return bool(source.crs)
                if source.transform.is_identity:
                    return bool(source.crs)
                return spans_area(source.transform)
    except Exception:  # not a raster, or a damaged one
        return False


@contextmanager
def _quiet_hdf5(path: str | Path) -> Iterator[None]:
    """Keep the HDF5 library from printing its stack of errors for a damaged file."""
    if not _is_hdf5(path):
        yield
        return
    stderr = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _is_hdf5(path: str | Path) -> bool:
    with suppress(OSError), Path(path).open("rb") as file:
        return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    return False


def spans_area(transform: rasterio.Affine) -> bool:
    """Return whether pixels have an area: the geotransform is finite and its axes are not parallel."""
    a, b, c, d, e, f = transform[:6]
    size = a * a + b * b + d * d + e * e
    return bool(np.isfinite([c, f, size]).all() and abs(a * e - b * d) > 1e-12 * size > 0)


def is_no_photograph(path: str | Path) -> bool:
    """Check whether a TIFF, VRT or the like has pixels that no photograph has, in their number or type."""
    if Path(path).suffix.lower() not in RASTER_SUFFIXES:
        return False
    try:
        with open_raster(path) as source:
            return source.dtypes[0] in ("int16", "float32") or len(image_bands(source)) not in (1, 3)
    except DataError:
        return False


def image_bands(source: DatasetReader) -> list[int]:
    """Return the numbers, from 1, of all bands except alpha.

    If the file says which of them are red, green and blue, these come first, in this order.

    Raises:
        DataError: the raster is damaged.
    """
    try:
        colors = source.colorinterp
    except Exception as error:  # GDAL may not notice a damaged header before this
        raise DataError(f"{source.name}: not a raster that can be read: {reason_of(error)}") from error
    bands = [band for band, color in zip(source.indexes, colors, strict=True) if color != ColorInterp.alpha]
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colors.count(color) == 1 for color in rgb):
        named = [colors.index(color) + 1 for color in rgb]
        return named + [band for band in bands if band not in named]
    return bands


def check_bands(source: DatasetReader, bands: Sequence[int], path: str | Path) -> None:
    """Check that a raster has these bands, from 1; one of them may be alpha.

    Raises:
        DataError: it lacks one.
    """
    for band in bands:
        if band not in source.indexes:
            numbers = ", ".join(map(str, source.indexes))
            raise DataError(f"{path}: has no band {band}; its bands are {numbers}")


def pixel_dtype(source: DatasetReader, bands: Sequence[int] | None = None) -> str:
    """Return the dtype of what `read_box` reads: the raster's, or float32 if a band has a scale or offset."""
    chosen = image_bands(source) if bands is None else bands
    dtype: str = source.dtypes[0]
    return "float32" if any(_scaling(source, band) != (1, 0) for band in chosen) else dtype


def alpha_note(source: DatasetReader, path: str | Path) -> str | None:
    """Describe an alpha band that holds many values, as an image band does; None if there is none.

    Raises:
        DataError: the raster is damaged.
    """
    colors = image_bands(source)
    for band in sorted(set(source.indexes) - set(colors)):
        shape = (min(source.height, SAMPLE), min(source.width, SAMPLE))
        try:
            with gdal_options(source.name):
                number = len(np.unique(source.read(band, out_shape=shape)))
        except Exception as error:  # many types, as in `open_raster`
            raise DataError(f"{path}: band {band} cannot be read: {reason_of(error)}") from error
        if number >= ALPHA_VALUES:
            return (
                f"{path}: band {band} is declared alpha, so it is not used and its zeros are no data, but it "
                f"has {number} values or more, as near infrared"
            )
    return None


def read_box(
    source: DatasetReader, box: Box, bands: Sequence[int] | None = None
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Read the pixels (bands, H, W) of a box, and a mask (H, W) of those with data, as `read_stored` does.

    Scale and offset of the bands are applied; `pixel_dtype` is the dtype.

    Raises:
        DataError: as `read_stored`.
    """
    bands = list(image_bands(source) if bands is None else bands)
    stored, valid = read_stored(source, box, bands)
    if all(_scaling(source, band) == (1, 0) for band in bands):
        return stored, valid
    scales, offsets = np.array([_scaling(source, band) for band in bands]).T[:, :, None, None]
    values = (stored * scales + offsets).astype(np.float32)
    values[:, ~valid] = 0
    return values, valid


def read_stored(
    source: DatasetReader, box: Box, bands: Sequence[int] | None = None, *, use_nodata: bool = True
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Read the pixels (bands, H, W) of a box, in the raster's dtype, and a mask (H, W) of those with data.

    A pixel has no data if one of these holds: it lies outside the raster; alpha or the mask band is 0; a band
    is NaN or infinite; all bands that have a nodata value hold it; a band holds a nodata value that is not
    within 0-65535. Pixels without data are returned as 0.

    Args:
        source: Open raster.
        box: Window; it may extend beyond the raster.
        bands: Numbers, from 1, of the bands to read; by default `image_bands`. An alpha band among them is
            read as an image band.
        use_nodata: Whether nodata values count.

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
    values[:, *target], valid[target] = _read_window(source, bands, inside, use_nodata)
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


def reason_of(error: Exception) -> str:
    """Return the reason of a GDAL or operating system error on one line."""
    # rasterio chains GDAL's own message as the cause.
    return " ".join(str(getattr(error, "strerror", None) or error.__cause__ or error).split())


def _scaling(source: DatasetReader, band: int) -> tuple[float, float]:
    """Return scale and offset of a band; 1 and 0 if it has none."""
    return source.scales[band - 1], source.offsets[band - 1]


def _read_window(
    source: DatasetReader, bands: list[int], box: Box, use_nodata: bool
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    try:
        with gdal_options(source.name):
            values = source.read(bands, window=box.window)
            valid = _unmasked(source, bands, box)
            if use_nodata:
                valid &= ~_nodata(source, bands, values, box)
    except Exception as error:  # many types, as in `open_raster`
        place = f"rows {box.top}-{box.bottom - 1}, columns {box.left}-{box.right - 1}"
        raise DataError(f"{source.name}: {place} cannot be read: {reason_of(error)}") from error
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    return values, valid


def _unmasked(source: DatasetReader, bands: list[int], box: Box) -> NDArray[np.bool_]:
    """Return where alpha and the mask bands are not 0.

    GDAL gives one mask for each band: of several kinds that a file has, only one, and alpha only of some
    types. So each kind is read by itself.
    """
    valid = np.ones((box.height, box.width), bool)
    for band in sorted(set(source.indexes) - set(image_bands(source)) - set(bands)):
        valid &= source.read(band, window=box.window) > 0
    for band in bands:
        flags = source.mask_flag_enums[band - 1]
        by_band = MaskFlags.nodata in flags and MaskFlags.per_dataset not in flags
        if by_band or MaskFlags.all_valid in flags or MaskFlags.alpha in flags:
            continue
        valid &= _mask(source, band, box)
        if MaskFlags.per_dataset in flags:
            break
    return valid


def _nodata(
    source: DatasetReader, bands: list[int], values: NDArray[np.generic], box: Box
) -> NDArray[np.bool_]:
    """Return where all bands that have a nodata value hold it, or one holds a value that is no colour."""
    every, some = np.ones((box.height, box.width), bool), np.zeros((box.height, box.width), bool)
    declared = [place for place, band in enumerate(bands) if source.nodatavals[band - 1] is not None]
    for place in declared:
        nodata, flags = source.nodatavals[bands[place] - 1], source.mask_flag_enums[bands[place] - 1]
        if flags == [MaskFlags.nodata]:
            there = ~_mask(source, bands[place], box)
        else:  # hidden by a mask
            there = values[place] == (np.float32(nodata) if values.dtype == np.float32 else nodata)
        every &= there
        if not COLOUR[0] <= nodata <= COLOUR[1]:
            some |= there
    return (every | some) if declared else some


def _mask(source: DatasetReader, band: int, box: Box) -> NDArray[np.bool_]:
    """Read GDAL's mask of a band."""
    has_alpha = len(image_bands(source)) < source.count
    shadowed = warnings.catch_warnings(action="ignore", category=NodataShadowWarning)
    with shadowed if has_alpha else nullcontext():  # only then, as filters are common to all threads
        mask: NDArray[np.bool_] = source.read_masks(band, window=box.window) > 0
        return mask
