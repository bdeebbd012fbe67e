"""A map while it grows, a plain GeoTIFF that is overwritten in place; then as a Cloud-Optimized GeoTIFF."""

import json
import os
import struct
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from ccsegformer.data.labels import Classes
from ccsegformer.errors import OutputError
from ccsegformer.raster.read import GDAL_OPTIONS, Box

BLOCK = 512
EXTRA_SAMPLES = 338  # the TIFF tag


class MapFormat(NamedTuple):
    """What the values of a map are."""

    dtype: str
    """uint8, or uint16 for more than 255 classes."""
    nodata: int
    confidence: bool
    """Whether a second band has the probability of the class, as a share of `largest`."""

    @property
    def bands(self) -> int:
        """One, or two."""
        return 2 if self.confidence else 1

    @property
    def largest(self) -> int:
        """What stands for certainty in the second band."""
        return int(np.iinfo(self.dtype).max) - 1


def map_format(classes: Classes, confidence: bool) -> MapFormat:
    """The smallest type that holds the classes and one value for no data.

    That value is the ignore index where the type has it; beside a confidence band, which it must not cut
    into, the type's largest.
    """
    dtype = "uint8" if len(classes) <= 255 else "uint16"
    largest = int(np.iinfo(dtype).max)
    nodata = classes.ignore_index if classes.ignore_index <= largest and not confidence else largest
    return MapFormat(dtype, nodata, confidence)


def map_bytes(height: int, width: int, format: MapFormat) -> int:
    """What a map takes on disk while it grows."""
    blocks = -(-height // BLOCK) * -(-width // BLOCK)
    return blocks * BLOCK**2 * np.dtype(format.dtype).itemsize * format.bands


def create_map(path: Path, source: DatasetReader, classes: Classes, format: MapFormat) -> None:
    """Write a map without data, where and as large as a scene; every block is there, so none will ever move.

    Raises:
        OutputError: it cannot be written, such as on a full disk.
    """
    tags = {"class_names": json.dumps(list(classes.names), ensure_ascii=False)}
    tags |= {f"class_{label}": name for label, name in classes.id2label.items()}
    points, points_crs = source.gcps
    with _writing(path):
        profile = {
            "driver": "GTiff",
            "width": source.width,
            "height": source.height,
            "count": format.bands,
            "dtype": format.dtype,
            "nodata": format.nodata,
            "crs": source.crs,
            "transform": source.transform,
            "tiled": True,
            "blockxsize": BLOCK,
            "blockysize": BLOCK,
            "BIGTIFF": "IF_SAFER",
        }
        with rasterio.open(path, "w", **profile) as target:
            target.write_colormap(1, {label: (*color, 255) for label, color in enumerate(classes.palette)})
            target.set_band_description(1, "class")
            target.update_tags(1, **tags)
            if points:
                target.gcps = points, points_crs
            if format.confidence:
                target.set_band_description(2, "confidence")
                target.scales = (1, 1 / format.largest)
        _synchronize(path, map_bytes(source.height, source.width, format))


@contextmanager
def opened_map(path: Path) -> Iterator[Callable[[Box, list[NDArray[np.generic]]], None]]:
    """Open a map, and yield a function that overwrites a box of it; afterwards everything is on disk.

    Raises:
        OutputError: it cannot be written.
    """
    with _writing(path):
        with rasterio.open(path, "r+") as target:

            def write(box: Box, bands: list[NDArray[np.generic]]) -> None:
                for number, values in enumerate(bands, start=1):
                    target.write(values, number, window=box.window)

            yield write
        _synchronize(path)


def write_cog(growing: Path, path: Path, classes: Classes) -> None:
    """Turn a map into a Cloud-Optimized GeoTIFF; `PATH.aux.xml` beside it has the class names for GDAL.

    Tiles of 512 pixels, deflated; overviews by mode, so that they show no class that is not there.

    Raises:
        OutputError: it cannot be written, such as on a full disk.
    """
    described = growing.with_suffix(".vrt")
    with _writing(path):
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
            BLOCKSIZE=BLOCK,
            OVERVIEWS="IGNORE_EXISTING",
            OVERVIEW_RESAMPLING="MODE",
            NUM_THREADS="ALL_CPUS",
        )
        _unset_alpha(path)
        with rasterio.open(path) as written, rasterio.open(growing) as source:
            # GDAL may notice a full disk only when it closes a file, and then says so to nobody.
            if any(written.checksum(band) != source.checksum(band) for band in source.indexes):
                raise OSError("what was written cannot be read back; the disk may be full")
        _synchronize(path)


def _unset_alpha(path: Path) -> None:
    """Say of a second band that it is of no particular kind; GDAL declares one beside a palette transparency.

    The value is overwritten in place, in each directory of the TIFF: edited by GDAL, it would not stay a COG.
    """
    with path.open("r+b") as file:
        magic, version = struct.unpack("<2sH", file.read(4))
        if magic != b"II":  # which GDAL writes unless it is told otherwise
            raise OSError("a TIFF of another byte order than GDAL's own")
        big = version == 43
        file.seek(8 if big else 4)
        word, count, entry, value = ("<Q", "<Q", 20, 12) if big else ("<I", "<H", 12, 8)

        def number(form: str) -> int:
            return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])

        while directory := number(word):
            file.seek(directory)
            first = directory + struct.calcsize(count)
            entries = number(count)
            for place in range(first, first + entries * entry, entry):
                file.seek(place)
                if number("<H") == EXTRA_SAMPLES:
                    file.seek(place + value)
                    file.write(struct.pack("<H", 0))
            file.seek(first + entries * entry)


def _synchronize(path: Path, least: int = 0) -> None:
    """Have the file on disk, with at least so many bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if os.fstat(file.fileno()).st_size < least:
            raise OSError("the file is cut short; the disk may be full")


@contextmanager
def _writing(path: Path) -> Iterator[Any]:
    """What goes wrong with the file is one line."""
    with rasterio.Env(**GDAL_OPTIONS), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            yield
        except (RasterioError, CPLE_BaseError, OSError) as error:
            reason = " ".join(str(getattr(error, "strerror", None) or error.__cause__ or error).split())
            raise OutputError(f"{path}: cannot be written: {reason}") from error
