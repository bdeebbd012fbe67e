"""Masks whose colours are classes, and palette files that list these colours."""

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from ccsegformer.data.images import decode_image, refuse_jpeg, rgb_from_pillow
from ccsegformer.data.labels import Classes, read_classes
from ccsegformer.data.palette import Color
from ccsegformer.errors import DataError

COLOR_MODES = ("RGB", "RGBA", "P", "PA", "L", "LA", "1")
"""Modes of Pillow images whose colours are known exactly in 8 bits a channel."""
LINE = re.compile(r"(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(.*\S)")
"""Line of a palette file: red, green, blue, name."""


def read_class_file(path: str | Path) -> Classes:
    """Read a `classes.json`, or the palette file of masks in colours if the name ends in `.txt`.

    Raises:
        DataError: As `read_classes` and `read_palette_file`.
    """
    return read_palette_file(path) if Path(path).suffix.lower() == ".txt" else read_classes(path)


def read_palette_file(path: str | Path) -> Classes:
    """Read lines `R G B NAME`, as in CamVid's label_colors.txt. Blank lines and those with `#` are skipped.

    Classes are numbered in the order of their first lines. Several lines may name one class, which is drawn
    in the first of its colours. Colours of the name `ignore` are ignored.

    Raises:
        DataError: The file cannot be read, or a line is invalid; the message names it.
    """
    colors: dict[Color, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = LINE.fullmatch(line.strip())
        if not found or max(map(int, found.groups()[:3])) > 255:
            raise DataError(
                f"{path}: line {number} must be 'R G B NAME', such as '128 0 0 road', not {line!r}"
            )
        red, green, blue = map(int, found.groups()[:3])
        if (red, green, blue) in colors:
            raise DataError(f"{path}: line {number}: the colour {red} {green} {blue} is given twice")
        colors[red, green, blue] = found[4]
    names = list(dict.fromkeys(name for name in colors.values() if name != "ignore"))
    ignored = 255 if len(names) <= 255 else 65535
    palette = {name: color for color, name in reversed(colors.items())}
    try:
        classes = Classes(tuple(names), tuple(palette[name] for name in names), ignored)
        labels = {name: label for label, name in enumerate(classes.names)} | {"ignore": ignored}
        return replace(classes, colors=tuple((color, labels[name]) for color, name in colors.items()))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def read_color_mask(classes: Classes, path: str | Path, content: bytes | None = None) -> tv_tensors.Mask:
    """Read a mask in the colours of `classes` as labels (H, W), uint8 or int32.

    The other arguments are those of `read_mask`.

    Raises:
        DataError: As `read_mask`, or a colour that is not listed.
    """
    image, _ = decode_image(path, content)
    refuse_jpeg(image, path)
    return labels_from_pillow(image, classes, path)


def labels_from_pillow(image: Image.Image, classes: Classes, name: str | Path) -> tv_tensors.Mask:
    """Convert a Pillow image in the colours of `classes` to labels (H, W); transparency is dropped.

    Raises:
        DataError: Another kind of image, or a colour that is not listed; the message begins with `name`.
    """
    if image.mode not in COLOR_MODES:
        raise DataError(f"{name}: masks in colours are RGB or palette images, not of mode {image.mode}")
    pixels = rgb_from_pillow(image, name).permute(1, 2, 0).numpy()
    return tv_tensors.Mask(torch.from_numpy(labels_of_colors(pixels, classes, name)))


def labels_of_colors(
    pixels: NDArray[np.uint8], classes: Classes, path: str | Path, *, top: int = 0, left: int = 0
) -> NDArray[np.integer]:
    """Return the labels (H, W), uint8 or int32, of the colours (H, W, 3) of a mask.

    The arguments `path`, `top` and `left` are those of `check_labels`.

    Raises:
        DataError: A colour that is not listed; the message names it, its place and the nearest listed one.
    """
    table = _places(classes.colors)
    places = table[
        (pixels[..., 0].astype(np.int32) << 16) | (pixels[..., 1].astype(np.int32) << 8) | pixels[..., 2]
    ]
    if (unknown := places == len(classes.colors)).any():
        row, column = map(int, np.argwhere(unknown)[0])
        found = pixels[row, column].astype(int)
        color, label = min(classes.colors, key=lambda listed: ((found - listed[0]) ** 2).sum())
        name = "ignore" if label == classes.ignore_index else classes.names[label]
        raise DataError(
            f"{path}: the colour {found.tolist()} at row {top + row}, column {left + column} is not listed; "
            f"the nearest is {list(color)}, {name!r}"
        )
    labels = [label for _, label in classes.colors]
    return np.array(labels, np.uint8 if classes.ignore_index <= 255 else np.int32)[places]


@lru_cache(maxsize=2)
def _places(colors: tuple[tuple[Color, int], ...]) -> NDArray[np.integer]:
    """Return, for each of the 2^24 colours, its place among `colors`, or their number."""
    table = np.full(2**24, len(colors), np.min_scalar_type(len(colors)))
    table[[(red << 16) + (green << 8) + blue for (red, green, blue), _ in colors]] = range(len(colors))
    return table


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error
