"""Colours for classes that have none."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


@cache
def default_palette(count: int) -> tuple[Color, ...]:
    """Choose `count` colours that are easy to tell apart. A longer palette begins with a shorter one.

    Each colour is the one farthest from all earlier ones and from black, the colour of ignored pixels.
    Distances are measured in Oklab, where they match perception (Ottosson, "A perceptual color space for
    image processing", 2020).
    """
    levels = np.linspace(0, 255, 18)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, *chroma = _oklab(colors / 255).T
    calm = (lightness > 0.4) & (lightness < 0.9) & (np.hypot(*chroma) < 0.21)  # not dark, pale or garish
    colors = colors[calm]
    coordinates = _oklab(colors / 255)
    distances = np.linalg.norm(coordinates, axis=1)  # black is Oklab's origin
    chosen = [int(np.abs(colors - (51, 119, 204)).sum(axis=1).argmin())]  # begin with a calm blue
    while len(chosen) < min(count, len(colors)):
        distances = np.minimum(distances, np.linalg.norm(coordinates - coordinates[chosen[-1]], axis=1))
        chosen.append(int(distances.argmax()))
    rows = colors[np.resize(chosen, count)].astype(int).tolist()
    return tuple((red, green, blue) for red, green, blue in rows)


def _oklab(srgb: NDArray[np.floating]) -> NDArray[np.floating]:
    """Convert sRGB colours (N, 3) in 0-1 to Oklab."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )
