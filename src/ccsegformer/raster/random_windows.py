"""Random windows of scenes, optionally centred on rare classes, and statistics of their bands."""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ccsegformer.data.dataset import Sample
from ccsegformer.data.pixels import BandStatistics, measure_bands, spread
from ccsegformer.errors import DataError
from ccsegformer.raster.dataset import TILE, Scenes, tiles
from ccsegformer.raster.read import Box

MAX_DRAWS = 10
"""Number of draws after which the window with the most labelled pixels is taken."""
LABELLED_SHARE = 0.5
"""Share of labelled pixels from which a window is taken at once."""
CELL = 64
"""Side, in pixels, of the squares in which classes are counted; divides `TILE`."""
STATISTICS_TILES = 128
"""Largest number of tiles of a scene that band statistics are taken from; 33 megapixels."""


class _Cells(NamedTuple):
    """Squares of 64 x 64 pixels that contain a class, and the running total of its pixels in them."""

    scene: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    cumulative: NDArray[np.int64]


class RandomWindows:
    """Windows at random places of scenes. An epoch has as many as it takes to tile the scenes.

    Args:
        scenes: Scenes to read from.
        size: Side of a window in pixels; the window ends where a smaller scene does.
        rare_classes: Share of the windows that are centred on a pixel of a random class. All classes that
            occur are equally likely. This reads all labels once and keeps 32 bytes for each class in each
            square of 64 x 64 pixels.

    Raises:
        DataError: a scene has no pixel with data and a label.
    """

    def __init__(self, scenes: Scenes, *, size: int, rare_classes: float = 0.0) -> None:
        self.scenes, self.size, self.rare_classes = scenes, size, rare_classes
        self.classes = scenes.classes
        self._scene_of = [
            number
            for number, scene in enumerate(scenes.scenes)
            for _ in tiles(scene.height, scene.width, size)
        ]
        for number in range(len(scenes.scenes)):
            _check_labelled(scenes, number)
        self._cells = _count_classes(scenes) if rare_classes else []

    def __len__(self) -> int:
        return len(self._scene_of)

    def draw(self, index: int, generator: torch.Generator) -> Sample:
        """Draw a window of the scene of tile `index`, or one centred on a rare class in any scene."""
        best: tuple[int, Sample | None] = (-1, None)
        for _ in range(MAX_DRAWS):
            coin, *draws = torch.rand(4, dtype=torch.float64, generator=generator).tolist()
            is_centred = coin < self.rare_classes
            number, box = self._centred_on_class(draws) if is_centred else self._anywhere(index, draws)
            name = f"{self.scenes.scenes[number].name}_{box.top}_{box.left}"
            sample = self.scenes.sample(number, box, name)
            labelled = int((sample["mask"] != self.classes.ignore_index).sum())
            if labelled > best[0]:
                best = (labelled, sample)
            if labelled >= LABELLED_SHARE * box.height * box.width or (is_centred and labelled):
                break
        assert best[1] is not None
        return best[1]

    def _anywhere(self, index: int, draws: list[float]) -> tuple[int, Box]:
        number = self._scene_of[index]
        scene = self.scenes.scenes[number]
        spare = (max(0, scene.height - self.size), max(0, scene.width - self.size))
        return number, self._box(number, int(draws[0] * (spare[0] + 1)), int(draws[1] * (spare[1] + 1)))

    def _centred_on_class(self, draws: list[float]) -> tuple[int, Box]:
        """Choose a class, then one of its pixels, both uniformly, and return the window centred on it."""
        label, cells = self._cells[int(draws[0] * len(self._cells))]
        place = int(np.searchsorted(cells.cumulative, int(draws[1] * cells.cumulative[-1]), side="right"))
        number, top, left = int(cells.scene[place]), int(cells.row[place]), int(cells.column[place])
        scene = self.scenes.scenes[number]
        cell = Box(top, left, min(top + CELL, scene.height), min(left + CELL, scene.width))
        rows, columns = np.nonzero(self.scenes.labels(number, cell) == label)
        pixel = int(draws[2] * len(rows))
        return number, self._box(
            number, top + int(rows[pixel]) - self.size // 2, left + int(columns[pixel]) - self.size // 2
        )

    def _box(self, number: int, top: int, left: int) -> Box:
        """Return the window that begins at `top` and `left`, moved into the scene."""
        scene = self.scenes.scenes[number]
        top = min(max(top, 0), max(0, scene.height - self.size))
        left = min(max(left, 0), max(0, scene.width - self.size))
        return Box(top, left, min(top + self.size, scene.height), min(left + self.size, scene.width))


def band_statistics(scenes: Scenes) -> BandStatistics:
    """Compute mean and standard deviation of each band, in stored units, over pixels with data.

    Up to 128 evenly spaced tiles of each scene are read.

    Raises:
        DataError: no pixel has data.
    """

    def pixels() -> Iterator[NDArray[np.generic]]:
        for number, scene in enumerate(scenes.scenes):
            boxes = tiles(scene.height, scene.width, TILE)
            for place in spread(len(boxes), STATISTICS_TILES):
                values, valid = scenes.pixels(number, boxes[place])
                yield values[:, valid]

    statistics = measure_bands(pixels())
    if statistics is None:
        raise DataError(f"{scenes.root}: no pixel with data in the tiles read for band statistics")
    return statistics


def _check_labelled(scenes: Scenes, number: int) -> None:
    """Check that a scene has a labelled pixel; the first tile usually has one."""
    scene, ignored = scenes.scenes[number], scenes.classes.ignore_index
    for box in tiles(scene.height, scene.width, TILE):
        if ((scenes.sample(number, box, "")["mask"]) != ignored).any():
            return
    raise DataError(f"{scene.path}: has nothing but nodata and unlabelled pixels")


def _count_classes(scenes: Scenes) -> list[tuple[int, _Cells]]:
    """Read all labels, tile by tile, and return each class that occurs with the squares that contain it."""
    found: dict[int, array[int]] = {}
    for number, scene in enumerate(scenes.scenes):
        for box in tiles(scene.height, scene.width, TILE):
            labels = scenes.labels(number, box)
            for top in range(0, box.height, CELL):
                for left in range(0, box.width, CELL):
                    cell = labels[top : top + CELL, left : left + CELL]
                    ids, counts = np.unique(cell, return_counts=True)
                    for label, count in zip(ids.tolist(), counts.tolist(), strict=True):
                        if label != scenes.classes.ignore_index:
                            place = (number, box.top + top, box.left + left, count)
                            found.setdefault(label, array("q")).extend(place)
    index = []
    for label, places in sorted(found.items()):
        numbers, rows, columns, counts = np.array(places).reshape(-1, 4).T
        index.append((label, _Cells(numbers, rows, columns, counts.cumsum())))
    return index
