"""Image and mask files, of any kind that Pillow opens, as tensors."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision import tv_tensors

from ccsegformer.errors import DataError


def read_image(path: str | Path, content: bytes | None = None) -> tv_tensors.Image:
    """Read an image as uint8 RGB (3, H, W), turned upright as its EXIF orientation says.

    Of a file that is in memory already, give the `content`; `path` is then its name in messages.

    Grey, palette, CMYK and other colour spaces become RGB; transparency is dropped and the colours beneath it
    are kept; of 16 bits a channel the upper 8 are kept. Up to 178 megapixels, Pillow's own limit.

    Raises:
        DataError: the file is missing, damaged, too large or no image; the message names it.
    """
    image, _ = _open(path, content)
    if image.mode == "F":
        raise DataError(f"{path}: an image of floating-point numbers; convert it to 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise DataError(f"{path}: a 32-bit image; convert it to 8 or 16 bits a channel")
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    try:
        # By way of RGBA, since Pillow turns some transparent palettes into RGB only with a warning.
        rgb = (image.convert("RGBA") if image.has_transparency_data else image).convert("RGB")
    except ValueError:
        raise DataError(f"{path}: a {image.mode} image, which has no RGB form here; convert it") from None
    pixels = np.array(rgb)  # a copy, since PyTorch wants memory that it may write to
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def read_mask(
    path: str | Path, content: bytes | None = None, *, advice: str = "save the ids as a grey or palette PNG"
) -> tv_tensors.Mask:
    """Read a mask's class ids (H, W): uint8, or int32 from 16-bit files; of a palette file the indices.

    An EXIF orientation is followed where the file carries one, as for images; `content` is as there.

    Raises:
        DataError: as `read_image`, and for a colour image, which holds no class ids; then with the `advice`.
    """
    image, packing = _open(path, content)
    wide = image.mode.startswith("I")
    if not wide and image.mode not in ("L", "P", "1"):
        raise DataError(
            f"{path}: a mask holds one class id a pixel, but this is a {image.mode} image; {advice}"
        )
    ids = torch.from_numpy(np.array(image, dtype=np.int32 if wide else np.uint8))
    step = 85 if "L;2" in packing else 17 if "L;4" in packing else 1  # Pillow spreads few bits over 0-255
    return tv_tensors.Mask(ids // step)


def _open(path: str | Path, content: bytes | None) -> tuple[Image.Image, str]:
    """Decode an image and turn it upright; also how its pixels were packed in the file, as Pillow writes it.

    Whatever goes wrong on the way is a DataError of one line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # 100 megapixels are welcome
            with Image.open(path if content is None else io.BytesIO(content)) as image:
                packing = str(image.tile[0].args) if image.tile else ""
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image that can be read") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise DataError(f"{path}: more than {limit} megapixels; cut it into smaller images") from None
    except (
        Exception
    ) as error:  # the decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged image: {reason}") from error
    return image, packing
