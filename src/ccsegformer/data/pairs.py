"""Check that an image and its mask agree in what only their files say: orientation and colours."""

from pathlib import Path

import torch
from PIL import Image

from ccsegformer.data.images import ORIENTATION
from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError


def check_orientation(
    mask: torch.Tensor, image: torch.Tensor, mask_path: str | Path, image_path: str | Path
) -> None:
    """Check that a mask and an image, as read, are turned alike.

    Both are turned as their EXIF orientations say. Where only one of them says so, the sides tell whether
    they lie alike, if one is turned by 90 degrees and they are not square.

    Raises:
        DataError: The orientations differ, and the sides do not show that mask and image lie alike.
    """
    of_image, of_mask = _orientation(image_path), _orientation(mask_path)
    height, width = image.shape[-2:]
    told = mask.shape[-2:] == image.shape[-2:] and height != width and (of_image > 4) != (of_mask > 4)
    if of_image != of_mask and not told:
        raise DataError(
            f"{mask_path}: has the EXIF orientation {of_mask}, but {image_path} has {of_image}, so one may "
            "be turned against the other; save both upright, without the tag"
        )


def check_palette(mask: torch.Tensor, classes: Classes, path: str | Path) -> None:
    """Check that a palette file does not show its classes in the colours of others.

    Raises:
        DataError: All its colours are those of classes, but not in their order.
    """
    with Image.open(path) as image:
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
                f"{path}: id {label} has the colour {list(colors[label])}, which is that of class {meant}, "
                f"{classes.names[meant]!r}; class {label} is {classes.names[label]!r}: correct the palette "
                "here or in classes.json"
            )


def _orientation(path: str | Path) -> int:
    with Image.open(path) as image:
        if image.format == "PNG":  # whose metadata may stand behind the pixels: do not decode them for it
            content = Path(path).read_bytes()
            if not any(word in content for word in (b"eXIf", b"exif", b"XML:com.adobe.xmp")):
                return 1
        return int(image.getexif().get(ORIENTATION, 1))
