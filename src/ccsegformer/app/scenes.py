"""Map a scene as `predict_scene` does, and show the map while it grows."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rasterio.windows import Window

from ccsegformer.app.images import OpenedImage
from ccsegformer.app.jobs import Job
from ccsegformer.app.photographs import colored_png, described, largest_peak
from ccsegformer.app.tiles import READING, TILE_SIDE, Color4, TileGrid, map_tile, tile_outline
from ccsegformer.app.workspace import OpenedModel
from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.lab.memory import peak_memory
from ccsegformer.labelling.scene import SceneMap, predict_scene
from ccsegformer.raster.georeference import is_georeferenced
from ccsegformer.raster.mapping import growing_map
from ccsegformer.raster.read import open_raster

PNG_SIDE = 4096
"""Longest side of a map's picture; the map itself has every pixel."""
COUNTED_ROWS = 1024
"""Rows of a map that are counted at a time."""
SUFFIX_POLYGONS = ".gpkg"
LEAST_KNOTS = 8
"""Points of a tile that must be on the map's projection for outlines to be drawn in it."""


class MapFiles(NamedTuple):
    """Where the map of a scene by one model is, or will be."""

    map: Path
    polygons: Path
    picture: Path

    @property
    def shown(self) -> Path | None:
        """The map, or until it is whole the one that grows; None before that."""
        return next((path for path in (self.map, growing_map(self.map)) if path.is_file()), None)


def map_files(folder: Path) -> MapFiles:
    """Return the files of a map in a folder."""
    return MapFiles(folder / "map.tif", folder / f"polygons{SUFFIX_POLYGONS}", folder / "map.png")


def map_scene(
    image: OpenedImage,
    model: OpenedModel,
    folder: Path,
    job: Job,
    turn: tuple[int, int],
    peaks: dict[tuple[Any, ...], int],
) -> dict[str, Any]:
    """Map a scene, with polygons and confidence, and return what the page says of it.

    Args:
        image: scene.
        model: model.
        folder: new folder for the files.
        job: is told of each window, and may be cancelled there.
        turn: number of this model among the job's, from 0, and how many there are.
        peaks: see `Workspace`.

    Raises:
        DataError, EngineError, OutputError: as `predict_scene`.
        JobCancelled: the job is to end.
    """
    written, (number, count) = map_files(folder), turn
    folder.mkdir(parents=True)
    done: list[SceneMap] = []

    def progress(windows: int, total: int) -> None:
        said = f"window {windows} of {total}" if windows < total else "writing the map and its polygons"
        job.report((number + 0.95 * windows / total) / count, f"{model.name}: {said}")

    def run() -> None:
        done.append(
            predict_scene(
                model.engine,
                image.path,
                written.map,
                classes=model.classes,
                confidence=True,
                polygons=written.polygons,
                progress=progress,
            )
        )

    begun = time.perf_counter()
    measured = peak_memory(run, model.engine.device.type)
    seconds = time.perf_counter() - begun
    memory = largest_peak(peaks, (model.key, "window", done[0].window), measured)
    counts = count_classes(written, model.classes, job)
    notes = [note.replace(str(image.path), image.name) for note in done[0].notes]
    return {**described(model, counts, seconds, memory), "window": done[0].window, "notes": notes}


def count_classes(written: MapFiles, classes: Classes, job: Job) -> NDArray[np.int64]:
    """Count the pixels (K,) of each class in a map, and write its picture."""
    counts = np.zeros(len(classes), np.int64)
    with open_raster(written.map) as source:
        for top in range(0, source.height, COUNTED_ROWS):
            job.check()
            rows = min(COUNTED_ROWS, source.height - top)
            values = source.read(1, window=Window(0, top, source.width, rows))
            known = values[values < len(classes)]
            counts += np.bincount(known, minlength=len(classes))
        scale = min(1.0, PNG_SIDE / max(source.shape))
        size = tuple(max(1, round(side * scale)) for side in source.shape)
        picture = colored_png(source.read(1, out_shape=size), int(source.nodata), classes)
    written.picture.write_bytes(picture)
    return counts


def growing_tile(written: MapFiles, grid: TileGrid, classes: Classes, z: int, x: int, y: int) -> Color4:
    """Draw a tile of a map that may still grow; empty before it begins to."""
    for _ in range(2):
        if (path := written.shown) is None:
            break
        try:
            return map_tile(path, grid, classes.palette, z, x, y)
        except DataError:  # the growing map became the whole one meanwhile
            if path == written.map:
                raise
    return np.zeros((TILE_SIDE, TILE_SIDE, 4), np.uint8)


def polygon_tile(written: MapFiles, grid: TileGrid, classes: Classes, z: int, x: int, y: int) -> Color4:
    """Draw the outlines of a map's polygons in a tile; those below a pixel are left out.

    Raises:
        DataError: the map is placed by control points, which the page does not follow.
    """
    picture = Image.new("RGBA", (TILE_SIDE, TILE_SIDE))
    if not written.polygons.is_file():
        return np.asarray(picture)
    with READING, open_raster(written.map) as source:
        columns, rows = tile_outline(source, grid, z, x, y)
        finite = np.isfinite(columns) & np.isfinite(rows)
        if finite.sum() < LEAST_KNOTS:
            return np.asarray(picture)
        placed = is_georeferenced(source)
        if not placed and source.gcps[0]:
            raise DataError("the map has control points: open its polygons in a GIS")
        a, b, c, d, e, f = source.transform[:6] if placed else (1, 0, 0, 0, -1, 0)
        east, north = a * columns + b * rows + c, d * columns + e * rows + f
        box = east[finite].min(), north[finite].min(), east[finite].max(), north[finite].max()
        _, _, geometries, (labels,) = pyogrio.raw.read(written.polygons, bbox=box, columns=["class_id"])
    draw = ImageDraw.Draw(picture)
    # A tile is small on the map: within it, positions are linear to a fraction of a pixel.
    to_tile = _tile_positions(east, north, finite, TILE_SIDE)
    for shape, label in zip(shapely.from_wkb(geometries), labels.tolist(), strict=True):
        for polygon in getattr(shape, "geoms", [shape]):
            rings = [
                to_tile(shapely.get_coordinates(ring)) for ring in (polygon.exterior, *polygon.interiors)
            ]
            if np.ptp(rings[0], axis=0).max() < 1:
                continue
            for ring in rings:
                points = [tuple(point) for point in ring.clip(-4 * TILE_SIDE, 5 * TILE_SIDE).tolist()]
                draw.line(points, fill=(0, 0, 0, 150), width=3)
                draw.line(points, fill=(*classes.palette[label], 255), width=1)
    return np.asarray(picture)


def _tile_positions(
    east: NDArray[np.floating], north: NDArray[np.floating], finite: NDArray[np.bool_], side: int
) -> Any:
    """Fit, by least squares, a function from map coordinates (N, 2) to pixels of the tile of these knots."""
    steps = np.linspace(0, side, len(east))
    across, down = np.meshgrid(steps, steps)
    places, pixels_there = np.stack([east, north], axis=-1)[finite], np.stack([across, down], axis=-1)[finite]
    centre = places.mean(axis=0)
    known = np.column_stack([places - centre, np.ones(len(places))])
    fit, *_ = np.linalg.lstsq(known, pixels_there, rcond=None)

    def to_tile(points: NDArray[np.floating]) -> NDArray[np.floating]:
        pixels: NDArray[np.floating] = np.column_stack([points - centre, np.ones(len(points))]) @ fit
        return pixels

    return to_tile
