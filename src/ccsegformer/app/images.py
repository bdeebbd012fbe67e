"""The person's images: uploads, examples and files below the given folder, checked before decoding."""

import io
import itertools
import shutil
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ccsegformer.app.tiles import READING, TileGrid, contrast, tile_grid
from ccsegformer.data.images import read_image
from ccsegformer.data.procedural.geotiff import write_scenes
from ccsegformer.data.procedural.scenes import scene
from ccsegformer.errors import CCSegformerError, DataError
from ccsegformer.files import require_space
from ccsegformer.raster.read import has_georeference, is_no_photograph, open_raster
from ccsegformer.raster.source_files import files_of

MAX_PHOTOGRAPH_BYTES = 64_000_000
MAX_SCENE_BYTES = 2_000_000_000
MAX_PHOTOGRAPH_PIXELS = 64_000_000
MAX_SCENE_PIXELS = 1_000_000_000
"""Of uploads; a scene below the given folder may have any size."""
SHOWN_SIDE = 2048
"""Longest side of a photograph as the page shows it."""
KEPT_IMAGES = 4
"""Images that can be labelled again; uploads of older ones are removed."""

FORMATS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"RIFF": "WEBP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
"""First bytes of the files that are accepted."""
SCENE_SUFFIXES = (".tif", ".tiff")
PHOTOGRAPH_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp")
EXAMPLE_SEED, EXAMPLES, EXAMPLE_SIDE = 2026, 4, 512
EXAMPLE_SCENE_SIDE = 1536


@dataclass(frozen=True)
class OpenedImage:
    """An image that the person chose.

    Attributes:
        key: number, in addresses.
        name: what the person calls it; only shown.
        path: file; made from the key, or below the given folder.
        size: height and width.
        grid: tiles of a scene; None for a photograph.
        bands: see `contrast`; empty for a photograph.
        shown: a photograph as the page shows it, a JPEG of at most 2048 pixels a side; empty for a scene.
        owned: whether the file is in the temporary folder and is removed with the image.
    """

    key: str
    name: str
    path: Path
    size: tuple[int, int]
    grid: TileGrid | None = None
    bands: tuple[tuple[int, float, float], ...] = ()
    shown: bytes = b""
    owned: bool = True

    def as_json(self) -> dict[str, Any]:
        """Return what the page shows of the image."""
        return {
            "key": self.key,
            "name": self.name,
            "kind": "photograph" if self.grid is None else "scene",
            "height": self.size[0],
            "width": self.size[1],
            "grid": self.grid.as_json() if self.grid else None,
        }


class Images:
    """The last few images, in a temporary folder.

    Args:
        folder: for uploads and examples.
        root: folder whose files may be opened by path; None if there is none.
    """

    def __init__(self, folder: Path, root: Path | None) -> None:
        self.folder, self.root = folder, root
        self._images: dict[str, OpenedImage] = {}
        self._numbers = itertools.count(1)
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, key: str) -> OpenedImage:
        if key not in self._images:
            raise DataError("this image is no longer kept: choose it again")
        return self._images[key]

    def new_path(self) -> Path:
        """Return a path for a new file; its name is a number."""
        return self.folder / str(next(self._numbers))

    def add(self, path: Path, name: str, *, owned: bool = True) -> OpenedImage:
        """Check a file, and keep it as the newest image; a refused file is removed if it is `owned`.

        Raises:
            DataError: it is no image that can be labelled; the message says why and calls it `name`.
        """
        try:
            with READING:  # one at a time, so that memory is bounded
                if owned:
                    path = _with_suffix(path, name)
                image = _opened(path, name, path.stem if owned else str(next(self._numbers)), owned)
        except BaseException:
            if owned:
                _delete(path)
            raise
        self._images[image.key] = image
        for old in list(self._images)[:-KEPT_IMAGES]:
            self.remove(old)
        return image

    def remove(self, key: str) -> None:
        """Forget an image, and remove its file if it is in the temporary folder."""
        image = self._images.pop(key, None)
        if image is not None and image.owned:
            _delete(image.path)

    def draw_example(self, number: int) -> OpenedImage:
        """Draw a generated photograph, or after the last one a georeferenced scene.

        Raises:
            DataError: there is no such example.
        """
        if not 0 <= number <= EXAMPLES:
            raise DataError(f"example {number}: there are {EXAMPLES + 1}")
        path = self.new_path()
        if number < EXAMPLES:
            path.write_bytes(example_picture(number))
            return self.add(path, f"Example {number + 1}")
        drawn = path.with_name(f"{path.name}-drawn")
        write_scenes(drawn, training=0, validation=1, size=EXAMPLE_SCENE_SIDE, seed=EXAMPLE_SEED)
        (found,) = (file for file in drawn.rglob("*.tif") if not file.stem.endswith("_mask"))
        found.replace(path)
        shutil.rmtree(drawn)
        return self.add(path, "Example scene")

    def below_root(self, given: str) -> Path:
        """Return the file or folder of a path below the given folder, symlinks resolved.

        Raises:
            DataError: it leads elsewhere, or there is none.
        """
        if self.root is None:
            raise DataError("no folder was given: start the application with --root FOLDER")
        try:
            path = (self.root / given).resolve()
            if path.is_relative_to(self.root) and path.exists():
                return path
        except (OSError, ValueError):  # a zero byte, a loop of links, a name that is too long
            pass
        raise DataError(f"{given}: no such file in the folder that was given")

    def open_path(self, given: str) -> OpenedImage:
        """Open a file below the given folder.

        Raises:
            DataError: as `below_root` and `add`, or the file needs others that are elsewhere.
        """
        path = self.below_root(given)
        if not path.is_file():
            raise DataError(f"{given}: a folder, not a file")
        return self.add(path, path.name, owned=False)

    def listing(self, given: str) -> dict[str, Any]:
        """List the folders and images of a folder below the given one, without hidden ones and links out."""
        folder = self.below_root(given)
        if not folder.is_dir() or self.root is None:
            raise DataError(f"{given}: not a folder")
        shown = (path for path in folder.iterdir() if not path.name.startswith("."))
        inside = sorted(path for path in shown if path.resolve().is_relative_to(self.root))
        known = (*SCENE_SUFFIXES, *PHOTOGRAPH_SUFFIXES)
        return {
            "folder": folder.relative_to(self.root).as_posix(),
            "folders": [path.name for path in inside if path.is_dir()],
            "files": [path.name for path in inside if path.is_file() and path.suffix.lower() in known],
        }


async def receive_file(chunks: AsyncIterator[bytes], path: Path, name: str, announced: int | None) -> None:
    """Write an upload to `path`, and end it as soon as it is too large or plainly no image.

    Args:
        chunks: content.
        path: new file; removed if the upload is refused or ends early.
        name: what messages call it.
        announced: number of bytes that the browser announces; None if it does not.

    Raises:
        DataError: it is no image by its first bytes, or too large.
        OutputError: the disk is too full.
    """
    if announced is not None:
        _check_bytes(announced, MAX_SCENE_BYTES, name)
        require_space(path.parent, announced)
    size, start, largest = 0, b"", MAX_SCENE_BYTES
    try:
        with path.open("xb") as file:
            async for chunk in chunks:
                if len(start) < 12:
                    start += chunk[:12]
                    if len(start) >= 12:
                        is_tiff = _format_of(start, name) == "TIFF"
                        largest = MAX_SCENE_BYTES if is_tiff else MAX_PHOTOGRAPH_BYTES
                size += len(chunk)
                _check_bytes(size, largest, name)
                file.write(chunk)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def example_picture(number: int, side: int = EXAMPLE_SIDE) -> bytes:
    """Draw an example, and return it as a PNG."""
    picture, _ = scene(EXAMPLE_SEED, number, side)
    return as_png(picture)


def as_png(picture: Any) -> bytes:
    """Encode an array as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _with_suffix(path: Path, name: str) -> Path:
    """Give a TIFF the suffix by which scenes are known."""
    with path.open("rb") as file:
        if _format_of(file.read(12), name) != "TIFF":
            return path
    return path.rename(path.with_suffix(".tif"))


def _check_bytes(size: int, largest: int, name: str) -> None:
    if size > largest:
        kind = "TIFF" if largest == MAX_SCENE_BYTES else "photograph"
        raise DataError(f"{name}: too large: a {kind} may have {largest // 10**6:,} MB")


def _format_of(start: bytes, name: str) -> str:
    for magic, format in FORMATS.items():
        if start.startswith(magic) and (format != "WEBP" or start[8:12] == b"WEBP"):
            return format
    raise DataError(f"{name}: not an image; choose a PNG, JPEG, WebP, GIF, BMP or TIFF file")


def _opened(path: Path, name: str, key: str, owned: bool) -> OpenedImage:
    """Check a file's format, bytes and pixels by its header, then decode it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        format = _format_of(file.read(12), name)
    try:
        if format == "TIFF" and (has_georeference(path) or is_no_photograph(path) or _is_huge_tiff(path)):
            if owned:
                _check_bytes(size, MAX_SCENE_BYTES, name)
            return _checked_scene(path, name, key, owned)
        _check_bytes(size, MAX_PHOTOGRAPH_BYTES, name)
        return _checked_photograph(path, name, key, format, owned)
    except CCSegformerError as error:
        raise type(error)(str(error).replace(str(path), name)) from error


def _checked_photograph(path: Path, name: str, key: str, format: str, owned: bool) -> OpenedImage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=[format]) as opened:
                width, height = opened.size
    except Image.DecompressionBombError:
        raise DataError(f"{name}: more than {MAX_PHOTOGRAPH_PIXELS // 10**6} megapixels") from None
    except Exception as error:  # Pillow raises many types for a damaged header
        if format != "TIFF":
            raise DataError(f"{name}: a damaged {format} file") from error
        with open_raster(path) as source:  # one that only GDAL reads
            height, width = source.shape
    if height * width > MAX_PHOTOGRAPH_PIXELS:
        raise DataError(
            f"{name}: {width} x {height} is {height * width / 1e6:.0f} megapixels, and a photograph may have "
            f"{MAX_PHOTOGRAPH_PIXELS // 10**6}"
        )
    pixels = read_image(path)
    shown = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=90)
    return OpenedImage(
        key, name, path, (int(pixels.shape[1]), int(pixels.shape[2])), shown=buffer.getvalue(), owned=owned
    )


def _is_huge_tiff(path: Path) -> bool:
    """Return whether a TIFF has more pixels than a photograph may have: it is shown in tiles then."""
    try:
        with open_raster(path) as source:
            return source.width * source.height > MAX_PHOTOGRAPH_PIXELS
    except DataError:
        return False


def _checked_scene(path: Path, name: str, key: str, owned: bool) -> OpenedImage:
    with open_raster(path) as source:
        if owned and source.width * source.height > MAX_SCENE_PIXELS:
            raise DataError(
                f"{name}: {source.width} x {source.height} pixels, and an uploaded scene may have "
                f"{MAX_SCENE_PIXELS // 10**6} million; give its folder with --root and open it by path"
            )
        if outside := [file for file in files_of(source) if not file.is_relative_to(path.parent)]:
            raise DataError(f"{name}: needs a file that lies elsewhere, {outside[0].name}")
        try:
            bands = contrast(source)
        except DataError:
            raise
        except Exception as error:  # GDAL raises many types
            raise DataError(f"{name}: a damaged TIFF file") from error
        return OpenedImage(
            key, name, path, (source.height, source.width), tile_grid(source), tuple(bands), owned=owned
        )


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)
    for side in path.parent.glob(f"{path.name}.*"):  # statistics and the like that GDAL wrote
        side.unlink(missing_ok=True)


def reduced(picture: np.ndarray) -> np.ndarray:
    """Take every nth row and column of (H, W, ...), so that no side is longer than the page shows."""
    height, width = picture.shape[:2]
    scale = min(1.0, SHOWN_SIDE / max(height, width))
    rows, columns = (max(1, round(side * scale)) for side in (height, width))
    down = ((np.arange(rows) + 0.5) * height / rows).astype(int)
    across = ((np.arange(columns) + 0.5) * width / columns).astype(int)
    return picture[down][:, across]
