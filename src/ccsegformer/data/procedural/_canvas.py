"""Canvas of a procedural scene, with the shapes and colour mixtures for painting it.

Sines are computed in float64 and nothing is summed over pixels, so that every machine paints the same
picture.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ccsegformer.data.procedural._layout import Rectangle


@dataclass(frozen=True)
class Canvas:
    """Pixels of a scene, painted in place."""

    zoom: float
    x: np.ndarray  # (1, size) and (size, 1): pixel centres in world units
    y: np.ndarray
    albedo: np.ndarray  # (size, size, 3) float32, 0 to 255
    height: np.ndarray  # (size, size) float32, world units
    label: np.ndarray  # (size, size) uint8

    @classmethod
    def blank(cls, size: int, zoom: float) -> "Canvas":
        """Create flat ground without colour or label."""
        centres = (np.arange(size, dtype=np.float32) + 0.5) / np.float32(zoom)
        albedo = np.zeros((size, size, 3), np.float32)
        height, label = np.zeros((size, size), np.float32), np.zeros((size, size), np.uint8)
        return cls(zoom, centres[None, :], centres[:, None], albedo, height, label)

    def window(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """Return the rows and columns within `reach` of a point, clipped to the scene."""
        low_x, high_x = int((x - reach) * self.zoom), int((x + reach) * self.zoom) + 2
        low_y, high_y = int((y - reach) * self.zoom), int((y + reach) * self.zoom) + 2
        return slice(max(low_y, 0), max(high_y, 0)), slice(max(low_x, 0), max(high_x, 0))

    def distance(self, rows: slice, columns: slice, x: float, y: float) -> np.ndarray:
        """Return the distance of each pixel of a window from a point."""
        return np.sqrt((self.x[:, columns] - x) ** 2 + (self.y[rows] - y) ** 2)

    def paint(
        self, rows: slice, columns: slice, depth: np.ndarray, colour: ArrayLike, label: int | None = None
    ) -> None:
        """Paint where `depth`, the distance inside the outline of a shape in world units, is positive.

        The edge of the colour is blended over one pixel; that of the label is not.
        """
        near = depth * self.zoom > -0.5
        cover = np.minimum(depth[near] * self.zoom + 0.5, 1).astype(np.float32)[:, None]
        fresh = np.asarray(colour, np.float32)
        area = self.albedo[rows, columns]
        old = area[near]
        area[near] = old + cover * ((fresh[near] if fresh.ndim == 3 else fresh) - old)
        if label is not None:
            self.label[rows, columns][depth > 0] = label

    def disc(self, x: float, y: float, radius: float, colour: ArrayLike, label: int) -> None:
        """Paint a flat disc."""
        rows, columns = self.window(x, y, radius + 1)
        depth = radius - self.distance(rows, columns, x, y)
        self.paint(rows, columns, depth, colour, label)

    def box(
        self, box: Rectangle, colour: ArrayLike, label: int, *, roof: float = 0.0, flat: bool = False
    ) -> None:
        """Paint a box and raise the ground to its height, plus `roof` at the ridge, unless it is `flat`."""
        rows, columns = self.window(box.x, box.y, (box.length + box.width) / 2 + 1)
        along, across = turn(self.x[:, columns] - box.x, self.y[rows] - box.y, box.angle)
        inset = box.width / 2 - np.abs(across)
        depth = np.minimum(box.length / 2 - np.abs(along), inset)
        self.paint(rows, columns, depth, colour, label)
        if not flat:
            rise = box.height + roof * inset / (box.width / 2)
            area = self.height[rows, columns]
            np.copyto(area, rise, where=depth > 0, casting="same_kind")


def noise(rng: np.random.Generator, size: int, cell: float) -> np.ndarray:
    """Draw smooth noise, float32 (size, size), about -1 to 1, with bumps `cell` pixels wide."""
    count = int(size / cell) + 4
    grid = Image.fromarray(rng.uniform(-1, 1, (count, count)).astype(np.float32))
    box = (1.5, 1.5, 1.5 + size / cell, 1.5 + size / cell)
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC, box=box))


def turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates along and across a direction."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def mix(first: ArrayLike, second: ArrayLike, share: np.ndarray) -> np.ndarray:
    """Interpolate colours (..., 3) from `first` to `second` by `share` (...)."""
    start = np.asarray(first, np.float32)
    return start + share[..., None].astype(np.float32) * (np.asarray(second, np.float32) - start)
