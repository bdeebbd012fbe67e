"""Write label maps: a plain GeoTIFF that is filled box by box, then copied to a Cloud-Optimized GeoTIFF."""

import json
import os
import struct
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from ccsegformer.data.labels import Classes
from ccsegformer.errors import OutputError
from ccsegformer.raster.georeference import is_georeferenced
from ccsegformer.raster.read import Box, reason_of
from ccsegformer.raster.source_files import GDAL_OPTIONS

MAP_BLOCK = 512
"""Side of a map's tiles in pixels."""
EXTRA_SAMPLES = 338
"""Number of the TIFF tag for the meaning of bands beyond the colours."""


class MapFormat(NamedTuple):
    """Pixel format of a label map."""

    dtype: str
    """uint8, or uint16 for more than 255 classes."""
    nodata: int
    confidence: bool
    """Whether a second band holds the probability of the class, scaled from [0, 1] to [0, `largest`]."""

    @property
    def bands(self) -> int:
        """Number of bands, 1 or 2."""
        return 2 if self.confidence else 1

    @property
    def largest(self) -> int:
        """Value of the second band for a probability of 1; the dtype's largest value is left for nodata."""
        return int(np.iinfo(self.dtype).max) - 1


def map_format(classes: Classes, confidence: bool) -> MapFormat:
    """Return the smallest format that holds all classes and a nodata value.

    The nodata value is the ignore index if it fits. With a confidence band, which shares the nodata value, it
    is the largest value of the dtype.
    """
    dtype = "uint8" if len(classes) <= 255 else "uint16"
    largest = int(np.iinfo(dtype).max)
    nodata = classes.ignore_index if classes.ignore_index <= largest and not confidence else largest
    return MapFormat(dtype, nodata, confidence)


def map_bytes(height: int, width: int, format: MapFormat) -> int:
    """Return the size on disk, in bytes, of a map before it is copied to a COG."""
    blocks = -(-height // MAP_BLOCK) * -(-width // MAP_BLOCK)
    return blocks * MAP_BLOCK**2 * np.dtype(format.dtype).itemsize * format.bands


def create_map(path: Path, source: DatasetReader, classes: Classes, format: MapFormat) -> None:
    """Write an empty map with the size and georeference of a scene.

    Every block is allocated, so that no later write moves one.

    Raises:
        OutputError: the file cannot be written, for instance because the disk is full.
    """
    tags = {"class_names": json.dumps(list(classes.names), ensure_ascii=False)}
    tags |= {f"class_{label}": name for label, name in enumerate(classes.names)}
    points, points_crs = source.gcps
    with _output_errors(path):
        profile = {
            "driver": "GTiff",
            "width": source.width,
            "height": source.height,
            "count": format.bands,
            "dtype": format.dtype,
            "nodata": format.nodata,
            "crs": source.crs,
            "transform": source.transform if is_georeferenced(source) else Affine.identity(),
            "tiled": True,
            "blockxsize": MAP_BLOCK,
            "blockysize": MAP_BLOCK,
            "BIGTIFF": "IF_SAFER",
        }
        with rasterio.open(path, "w", **profile) as target:
            target.write_colormap(1, {label: (*color, 255) for label, color in enumerate(classes.palette)})
            target.set_band_description(1, "class")
            target.update_tags(1, **tags)
            if points:
                target.gcps = points, points_crs or CRS()
            if source.rpcs:
                target.rpcs = source.rpcs
            if format.confidence:
                target.set_band_description(2, "confidence")
                target.scales = (1, 1 / format.largest)
        _synchronize(path, map_bytes(source.height, source.width, format))


@contextmanager
def opened_map(path: Path) -> Iterator[Callable[[Box, list[NDArray[np.generic]]], None]]:
    """Open a map and yield a function that overwrites a box of it; flush the map to disk afterwards.

    Raises:
        OutputError: the file cannot be written.
    """
    with _output_errors(path):
        with rasterio.open(path, "r+") as target:

            def write(box: Box, bands: list[NDArray[np.generic]]) -> None:
                for number, values in enumerate(bands, start=1):
                    target.write(values, number, window=box.window)

            yield write
        _synchronize(path)


def write_cog(growing: Path, path: Path, classes: Classes) -> None:
    """Copy the finished map `growing` to a Cloud-Optimized GeoTIFF.

    Its tiles have 512 x 512 pixels, compressed with DEFLATE. Overviews take the most frequent class of the
    pixels that they merge. GDAL's category names go to `PATH.aux.xml`.

    Raises:
        OutputError: the file cannot be written, for instance because the disk is full.
    """
    described = growing.with_suffix(".vrt")
    with _output_errors(path):
        rasterio.shutil.copy(growing, described, driver="VRT")
        document = ElementTree.parse(described)
        names = ElementTree.SubElement(next(document.iter("VRTRasterBand")), "CategoryNames")
        for name in classes.names:
            ElementTree.SubElement(names, "Category").text = name
        document.write(described)
        rasterio.shutil.copy(
            described,
            path,
            driver="COG",
            COMPRESS="DEFLATE",
            BLOCKSIZE=MAP_BLOCK,
            OVERVIEWS="IGNORE_EXISTING",
            OVERVIEW_RESAMPLING="MODE",
            NUM_THREADS="ALL_CPUS",
        )
        _unset_alpha(path)
        with rasterio.open(path) as written, rasterio.open(growing) as source:
            # GDAL may hit a full disk only when it closes the file, and then raises nothing.
            if any(written.checksum(band) != source.checksum(band) for band in source.indexes):
                raise OSError("the written file differs from the map; the disk may be full")
        _synchronize(path)


def _unset_alpha(path: Path) -> None:
    """Mark the second band of a palette TIFF as data instead of alpha, in each of its directories.

    GDAL's `CreateCopy`, on which the COG driver is built, marks the second of two bands as alpha whenever the
    first has a palette, whatever ALPHA, PHOTOMETRIC or the source say (frmts/gtiff/gtiffdataset_write.cpp);
    QGIS would draw confidence as transparency. Changed through GDAL, the directory would move to the end of
    the file, which then is no COG. So the value of the tag ExtraSamples is overwritten in place.
    """
    with path.open("r+b") as file:
        magic, version = struct.unpack("<2sH", file.read(4))
        if magic != b"II":  # GDAL's default
            raise OSError("the TIFF is big-endian, which is not GDAL's default")
        is_big = version == 43
        file.seek(8 if is_big else 4)
        offset, count, entry_bytes, value_at = ("<Q", "<Q", 20, 12) if is_big else ("<I", "<H", 12, 8)

        def read_number(format: str) -> int:
            return int(struct.unpack(format, file.read(struct.calcsize(format)))[0])

        while directory := read_number(offset):
            file.seek(directory)
            first = directory + struct.calcsize(count)
            end = first + read_number(count) * entry_bytes
            for entry in range(first, end, entry_bytes):
                file.seek(entry)
                if read_number("<H") == EXTRA_SAMPLES:
                    file.seek(entry + value_at)
                    file.write(struct.pack("<H", 0))
            file.seek(end)


def _synchronize(path: Path, at_least: int = 0) -> None:
    """Flush a file to disk and check that it has at least so many bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if os.fstat(file.fileno()).st_size < at_least:
            raise OSError("the file is cut short; the disk may be full")


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Set GDAL's options and turn its errors into a one-line `OutputError`."""
    with rasterio.Env(**GDAL_OPTIONS), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            yield
        except (RasterioError, CPLE_BaseError, OSError) as error:
            raise OutputError(f"{path}: cannot be written: {reason_of(error)}") from error
