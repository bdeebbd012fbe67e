"""The files behind a raster, how GDAL is to open them, and whether they can hold what the raster declares."""

import os
import re
from contextlib import suppress
from pathlib import Path

import rasterio
from rasterio.io import DatasetReader

from ccsegformer.errors import DataError
from ccsegformer.raster.remote import FILE_SYSTEMS, s3_options

GDAL_OPTIONS = {
    "GDAL_CACHEMAX": 64 * 2**20,  # bytes, as rasterio sets it; by default 5 % of the memory
    "GDAL_HTTP_MAX_RETRY": 3,  # after an HTTP status of 429 or 500 to 504
    "GDAL_HTTP_RETRY_DELAY": 1,  # seconds before the first retry; about doubles with each one
}
PIXELS_PER_BYTE = 100_000
"""Number of pixels for each byte of a raster's files above which its size is taken for damaged."""
LARGE = 2**32
"""Number of pixels up to which a raster's size is not compared with its files."""
SIDECARS = (".aux.xml", ".msk", ".msk.ovr", ".ovr")
"""What GDAL appends to the name of a file for the files beside it that belong to it."""
NETWORK = r"/vsi(curl|s3|gs|az|adls|oss|swift|w?e?b?hdfs)|\b(https?|ftp|s3|gs|az|oss|swift|hdfs)://"
REMOTE_OPTIONS: dict[str, int | str] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # do not list remote folders
    "GDAL_HTTP_CONNECTTIMEOUT": 30,  # seconds
    "GDAL_HTTP_LOW_SPEED_TIME": 30,  # seconds at less than the next line, after which a request has failed
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1000,  # bytes a second
}
"""For files on a network, unless the environment says otherwise."""


def gdal_options(path: str | Path) -> rasterio.Env:
    """Return the GDAL settings under which to open and read `path`, as a context manager."""
    chosen: dict[str, int | str] = {**GDAL_OPTIONS, **s3_options()}
    if reads_network(path):
        chosen |= {name: value for name, value in REMOTE_OPTIONS.items() if name not in os.environ}
        # Several threads of GDAL 3.10 return zeros, without an error, for what the server fails to give.
        chosen["GDAL_NUM_THREADS"] = 1
    return rasterio.Env(**chosen)


def forget(path: str | Path) -> None:
    """Make GDAL ask the server for a file again: it keeps what it has read, even if the answer broke off."""
    closing = {"CPL_VSIL_CURL_NON_CACHED": ":".join(FILE_SYSTEMS)}  # drops it when the file is closed
    quickly = {"GDAL_HTTP_TIMEOUT": 1, "GDAL_HTTP_MAX_RETRY": 0}
    with gdal_options(path), rasterio.Env(**closing, **quickly), suppress(Exception):
        rasterio.open(path).close()


def is_remote(path: str | Path) -> bool:
    """Return whether a path is not a file's own, but GDAL's: `/vsi...`, a URL, or a part, `NETCDF:a.nc:b`."""
    text = str(path)
    return text.startswith("/vsi") or bool(re.match(r"[\w+]{2,}:", text) and not Path(text).exists())


def is_over_network(path: str | Path) -> bool:
    """Return whether GDAL reads the path over a network."""
    return re.search(NETWORK, str(path)) is not None


def reads_network(path: str | Path) -> bool:
    """Return whether a path, or a VRT that is a local file, leads to files on a network."""
    if is_over_network(path) or Path(path).suffix.lower() != ".vrt":
        return is_over_network(path)
    try:
        with Path(path).open("rb") as file:
            return is_over_network(file.read(100_000).decode(errors="replace"))
    except OSError:
        return False


def files_of(source: DatasetReader) -> set[Path]:
    """Return the local files that a raster is made of: sources, sidecars, archives; symlinks resolved.

    Raises:
        DataError: the raster names a file in another encoding than UTF-8.
    """
    found: set[Path] = set()
    waiting = _names_of_files(source) or [source.name]
    while waiting:
        name = waiting.pop()
        file = _local_file(name)
        if is_over_network(name) or file is None or file in found:
            continue
        found.add(file)
        found |= {side for side in side_files(file) if side.exists()}
        try:
            with file.open("rb") as content:
                if b"<VRTDataset" not in content.read(1000):
                    continue
            with gdal_options(name), rasterio.open(name) as inner:
                waiting += _names_of_files(inner)
        except DataError:
            raise
        except Exception:  # whatever is wrong in it is said when it is read
            continue
    return found


def side_files(path: Path) -> list[Path]:
    """Return the paths of the files that GDAL keeps beside a raster, whether they exist or not."""
    return [path.with_name(path.name + ending) for ending in SIDECARS]


def absurd_size(source: DatasetReader) -> str | None:
    """Describe a size that the files of a raster cannot fill, as of a damaged header; None if they can."""
    pixels = source.width * source.height
    if pixels <= LARGE or any(map(is_over_network, _names_of_files(source))):
        return None
    files = files_of(source)
    size = sum(file.stat().st_size for file in files)
    if not files or pixels <= PIXELS_PER_BYTE * size:
        return None
    return (
        f"declares {source.width} x {source.height} pixels, but its files have {size} bytes; it is damaged, "
        "or too sparse: cut out a part with gdal_translate -projwin"
    )


def _names_of_files(source: DatasetReader) -> list[str]:
    try:
        return [str(name) for name in source.files]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source.name}: names a file, {ascii(error.object)[2:-1]}, that is not in UTF-8; rename it"
        ) from error


def _local_file(name: str) -> Path | None:
    """Return the file that a GDAL path names or lies in."""
    path = Path(re.sub(r"^(/vsi\w+/)+", "", name))
    return next((place.resolve() for place in (path, *path.parents) if place.is_file()), None)
