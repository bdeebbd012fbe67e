"""Read images and masks in any format that Pillow knows, as tensors."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from torchvision import tv_tensors

from ccsegformer.errors import DataError

NO_PHOTOGRAPHS = {
    *("BUFR", "CUR", "EPS", "FITS", "FLI", "GBR", "GRIB", "HDF5"),
    *("ICNS", "ICO", "IPTC", "MPEG", "PALM", "PDF", "WMF"),
}
"""Formats that Pillow lists among images, but which hold documents, icons, videos or measurements."""
ADVICE = "save the ids as a grey or palette PNG, or list the colours in classes.json"
ORIENTATION = 274  # tag of EXIF and TIFF


def image_suffixes() -> set[str]:
    """Return the suffixes, in lower case, of the files that are taken for images."""
    known = Image.registered_extensions().items()
    return {suffix for suffix, format in known if format not in NO_PHOTOGRAPHS}


def read_image(path: str | Path, content: bytes | None = None) -> tv_tensors.Image:
    """Read an image as uint8 RGB (3, H, W), rotated as its EXIF orientation says.

    Grey, palette, CMYK and other colour spaces are converted to RGB. Transparency is dropped, and the colours
    beneath it are kept. Of 16 bits a channel, the upper 8 are kept. Up to 178 megapixels, Pillow's own limit.

    Args:
        path: Path of the file; only a name for messages if `content` is given.
        content: Encoded file, if it is already in memory.

    Raises:
        DataError: The file is missing, damaged, too large or not an image; the message names it.
    """
    return rgb_from_pillow(decode_image(path, content)[0], path)


def read_mask(path: str | Path, content: bytes | None = None, *, advice: str = ADVICE) -> tv_tensors.Mask:
    """Read a mask's class ids (H, W): uint8, or int32 from 16-bit files; the indices of a palette file.

    Rotated as its EXIF orientation says. `path` and `content` are those of `read_image`.

    Raises:
        DataError: As `read_image`; also for a colour image, which holds no class ids, with `advice`.
    """
    image, packing = decode_image(path, content)
    ids = ids_from_pillow(image, path, packing=packing, advice=advice)
    refuse_jpeg(image, path)
    return ids


def refuse_jpeg(image: Image.Image, path: str | Path) -> None:
    """Refuse a mask, as opened by Pillow, that is compressed as a JPEG.

    Raises:
        DataError: It is; the message begins with `path`.
    """
    if image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg":  # the latter in a TIFF
        raise DataError(f"{path}: a JPEG as a mask: its compression changes class ids; save them as PNG")


def rgb_from_pillow(image: Image.Image, name: str | Path) -> tv_tensors.Image:
    """Convert a Pillow image to uint8 RGB (3, H, W), as `read_image` does.

    Raises:
        DataError: The image has no 8-bit RGB form; the message begins with `name`.
    """
    if image.mode == "F":
        raise DataError(f"{name}: an image of floating-point numbers; convert it to 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise DataError(f"{name}: a 32-bit image; convert it to 8 or 16 bits a channel")
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    try:
        # Through RGBA, because Pillow warns when it converts some transparent palettes straight to RGB.
        rgb = (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB")
    except ValueError:
        raise DataError(f"{name}: Pillow cannot convert mode {image.mode} to RGB; convert the file") from None
    pixels = np.array(rgb)  # a copy, because PyTorch needs writable memory
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def ids_from_pillow(
    image: Image.Image,
    name: str | Path,
    *,
    packing: str = "",
    advice: str = ADVICE,
) -> tv_tensors.Mask:
    """Convert a Pillow image to class ids (H, W), as `read_mask` does.

    Raises:
        DataError: The image is in colour; the message begins with `name` and ends with `advice`.
    """
    wide = image.mode.startswith("I")
    if not wide and image.mode not in ("L", "P", "1"):
        raise DataError(
            f"{name}: a mask holds one class id per pixel, but this image has mode {image.mode}; {advice}"
        )
    ids = torch.from_numpy(np.array(image, dtype=np.int32 if wide else np.uint8))
    step = 85 if "L;2" in packing else 17 if "L;4" in packing else 1  # Pillow spreads few bits over 0-255
    return tv_tensors.Mask(ids // step)


def decode_image(path: str | Path, content: bytes | None) -> tuple[Image.Image, str]:
    """Decode an image and apply its EXIF orientation. Also return how Pillow says its pixels are packed.

    Raises:
        DataError: The file cannot be decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # up to 178 megapixels are fine
            with Image.open(path if content is None else io.BytesIO(content)) as image:
                if image.format in NO_PHOTOGRAPHS:
                    raise DataError(
                        f"{path}: {image.format} is not a format of photographs; convert it to PNG"
                    )
                if image.format == "TIFF" and min(_tag(image, 258, (1,))) > 8 and _tag(image, 277, 1) > 2:
                    return _decode_tiff(path, content), ""  # Pillow misreads some
                packing = str(image.tile[0].args) if image.tile else ""
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    except UnidentifiedImageError:
        return _decode_tiff(path, content), ""
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise DataError(f"{path}: more than {limit} megapixels; cut it into smaller images") from None
    except (
        Exception
    ) as error:  # the decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged image: {reason}") from error
    return image, packing


def _tag(image: Image.Image, tag: int, default: Any) -> Any:
    return image.tag_v2.get(tag, default)  # type: ignore[attr-defined]


def _decode_tiff(path: str | Path, content: bytes | None) -> Image.Image:
    """Decode a TIFF that Pillow does not read: several channels of 16 bits, LERC and others.

    Raises:
        DataError: No TIFF that GDAL reads, or not 3 or 4 channels of 8 or 16 bits.
    """
    data = Path(path).read_bytes() if content is None else content
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        raise DataError(f"{path}: not an image that can be read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.MemoryFile(data) as memory, memory.open(driver="GTiff") as source:
                _check_tiff(source, path)
                values = source.read()
        if len(values) == 1:
            image = Image.fromarray(values[0])
        else:
            eight = values[:3] >> 8 if values.dtype == np.uint16 else values[:3]
            image = Image.fromarray(np.ascontiguousarray(eight.transpose(1, 2, 0).astype(np.uint8)))
        if b"*" in data[2:4]:  # not a BigTIFF, whose directory has another form
            tags = ImageFileDirectory_v2(data[:8])
            stream = io.BytesIO(data)
            stream.seek(tags.next)
            tags.load(stream)
            image.getexif()[ORIENTATION] = tags.get(ORIENTATION, 1)
            ImageOps.exif_transpose(image, in_place=True)
    except DataError:
        raise
    except Exception as error:  # as in `decode_image`
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{path}: damaged image: {reason}") from error
    return image


def _check_tiff(source: DatasetReader, path: str | Path) -> None:
    if source.count not in (1, 3, 4) or source.dtypes[0] not in ("uint8", "uint16"):
        raise DataError(
            f"{path}: a TIFF of {source.count} channels of {source.dtypes[0]}, not a photograph; "
            "convert it to 3 channels of 8 or 16 bits, or map it as a scene: --output NAME.tif"
        )
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if source.width * source.height > limit:
        raise DataError(f"{path}: more than {limit // 1_000_000} megapixels; cut it into smaller images")
