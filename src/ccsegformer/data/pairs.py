"""Check that an image and its mask agree in what only their files say: orientation and colours."""

import io
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from ccsegformer.data.images import ORIENTATION
from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError


def check_orientation(
    mask: torch.Tensor,
    image: torch.Tensor,
    mask_path: str | Path,
    image_path: str | Path,
    contents: tuple[bytes, bytes] | None = None,
) -> None:
    """Check that a mask and an image, as read, are turned alike.

    Both are turned as their EXIF orientations say. Where only one of them says so, the sides tell whether
    they lie alike, if one is turned by 90 degrees and they are not square.

    Args:
        mask: Mask (H, W), as read.
        image: Image (bands, H, W), as read.
        mask_path: Path of the mask; only a name for messages if `contents` is given.
        image_path: Path of the image, likewise.
        contents: Encoded files of the mask and the image, if they are in memory.

    Raises:
        DataError: The orientations differ, and the sides do not show that mask and image lie alike.
    """
    mask_file, image_file = contents or (None, None)
    turns = orientation_in(mask_path, mask_file), orientation_in(image_path, image_file)
    check_turns(mask, image, turns, (f"{mask_path}", f"{image_path}"))


def check_turns(
    mask: torch.Tensor, image: torch.Tensor, turns: tuple[int, int], names: tuple[str, str]
) -> None:
    """Check that a mask and an image are turned alike, by their EXIF orientations, as `check_orientation`.

    Args:
        mask: Mask (H, W), turned.
        image: Image (bands, H, W), turned.
        turns: EXIF orientations of mask and image.
        names: Names of mask and image for the message.
    """
    of_mask, of_image = turns
    height, width = image.shape[-2:]
    told = mask.shape[-2:] == image.shape[-2:] and height != width and (of_image > 4) != (of_mask > 4)
    if of_image != of_mask and not told:
        raise DataError(
            f"{names[0]}: has the EXIF orientation {of_mask}, but {names[1]} has {of_image}, so one may "
            "be turned against the other; save both upright, without the tag"
        )


def check_palette(
    mask: torch.Tensor, classes: Classes, path: str | Path, content: bytes | None = None
) -> None:
    """Check that a palette file does not show its classes in the colours of others.

    `path` and `content` are those of `read_image`.

    Raises:
        DataError: All its colours are those of classes, but not in their order.
    """
    with (
        suppress(UnidentifiedImageError),  # a TIFF that only GDAL reads
        Image.open(path if content is None else io.BytesIO(content)) as image,
    ):
        check_image_palette(image, mask, classes, path)


def check_image_palette(image: Image.Image, mask: torch.Tensor, classes: Classes, name: str | Path) -> None:
    """Check the palette of a Pillow image with these ids, as `check_palette`."""
    if image.mode != "P":
        return
    stored = image.palette
    raw = stored is not None and stored.rawmode == "RGB"  # else convert, for which Pillow decodes all
    levels = list(stored.palette) if stored and raw else image.getpalette() or []
    colors = [tuple(levels[start : start + 3]) for start in range(0, len(levels), 3)]
    used = [label for label in mask.unique().tolist() if label < min(len(classes), len(colors))]
    if all(len(set(color)) == 1 for color in colors) or any(colors[i] not in classes.palette for i in used):
        return
    for label in used:
        if colors[label] != classes.palette[label]:
            meant = classes.palette.index(colors[label])
            raise DataError(
                f"{name}: id {label} has the colour {list(colors[label])}, which is that of class {meant}, "
                f"{classes.names[meant]!r}; class {label} is {classes.names[label]!r}: correct the palette "
                "here or in classes.json"
            )


def orientation_in(path: str | Path, content: bytes | None = None) -> int:
    """Return the EXIF orientation of a file, 1 to 8; `path` and `content` are those of `read_image`."""
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            if image.format == "PNG":  # whose metadata may stand behind the pixels: do not decode them for it
                data = Path(path).read_bytes() if content is None else content
                if not any(word in data for word in (b"eXIf", b"exif", b"XML:com.adobe.xmp")):
                    return 1
            return orientation_of(image)
    except UnidentifiedImageError:  # a TIFF that only GDAL reads
        return 1


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of a Pillow image, 1 to 8."""
    return int(image.getexif().get(ORIENTATION, 1))
