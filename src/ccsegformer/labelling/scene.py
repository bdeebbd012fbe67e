"""Map a scene of any size in bounded memory: raster in, Cloud-Optimized GeoTIFF out.

One window is read ahead and one is written behind while the network labels a third. What neighbouring windows
share waits on disk, so memory depends on the window and not on the scene.
"""

import json
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ccsegformer import __version__
from ccsegformer.data.download import require_space
from ccsegformer.data.labels import Classes
from ccsegformer.data.pixels import BandStatistics, normalize
from ccsegformer.errors import DataError, EngineError, OutOfMemoryError, OutputError
from ccsegformer.files import check_writable
from ccsegformer.labelling.budget import MEMORY, SMALLEST_WINDOW, choose_window
from ccsegformer.labelling.engine import Engine, EngineName, Precision, open_engine
from ccsegformer.labelling.labeller import input_statistics
from ccsegformer.labelling.tiling import STEP, Span, spans
from ccsegformer.labelling.windows import Blend, Carry, Labelled, label_window, window_logits
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from ccsegformer.raster import _journal as journal
from ccsegformer.raster._journal import load_scores, save_scores
from ccsegformer.raster.polygons import check_polygon_output, write_polygons
from ccsegformer.raster.read import Box, fill_gaps, image_bands, is_remote, open_raster, read_box
from ccsegformer.raster.write import MapFormat, create_map, map_bytes, map_format, write_box, write_cog


class SceneMap(NamedTuple):
    """A map that was written, and how."""

    path: Path
    window: int
    overlap: int
    notes: tuple[str, ...]
    """What a person should know of the scene, such as that it has no CRS."""


class _Tile(NamedTuple):
    """A window with what was read there."""

    rows: Span
    columns: Span
    image: NDArray[np.uint8 | np.float32]
    valid: NDArray[np.bool_]

    @property
    def final(self) -> NDArray[np.bool_]:
        """Which pixels have data, of those that are final once this window is done."""
        rows, columns = (slice(side.rise - side.start, side.fall - side.start) for side in self[:2])
        return self.valid[rows, columns]


class _Run(NamedTuple):
    """What does not change while a scene is mapped."""

    engine: Engine
    statistics: BandStatistics | None
    path: str | Path
    folder: Path
    rows: list[Span]
    columns: list[Span]
    blend: Blend
    format: MapFormat

    @property
    def growing(self) -> Path:
        """The unfinished map."""
        return self.folder / "growing.tif"

    def right(self, index: int) -> Path:
        """What window `index` carried to the right."""
        return self.folder / f"right_{index % 2}.npy"

    def below(self, row: int, column: int) -> Path:
        """What a window carried down."""
        return self.folder / f"below_{row % 2}_{column}.npy"


def predict_scene(
    model: CrissCrossSegformerForSemanticSegmentation | Engine,
    path: str | Path,
    output: str | Path,
    *,
    classes: Classes,
    window: int | None = None,
    overlap: int | None = None,
    blend: Blend = "logits",
    memory: int | str = MEMORY,
    confidence: bool = False,
    polygons: str | Path | None = None,
    simplify: float | None = None,
    engine: EngineName | None = None,
    precision: Precision | None = None,
    progress: bool = False,
) -> SceneMap:
    """Label every pixel of a georeferenced raster, window by window, on the model's device.

    The map has the scene's size, CRS and transform. It holds the class ids, uint8, or uint16 for more than
    255 classes, with the classes' palette and names; pixels without data hold the ignore index, or the type's
    largest value where that does not fit. It appears under its name when it is whole. A run that was broken
    off, in whatever way, goes on where it was when it is called again with the same arguments, and writes the
    same bytes; until then what is done is in `.NAME.partial` beside the output, one or two bytes a pixel.

    Args:
        model: in any mode; it is in evaluation mode meanwhile. Or an engine that runs one.
        path: anything GDAL opens: a file, `/vsicurl/https://...`, `s3://...`.
        output: the GeoTIFF to write; one that is there is replaced.
        classes: one for each of the model's.
        window: side of the square that the network sees, in pixels, at least 32; by default the fastest
            that fits into `memory`, see `budget`, halved as often as the device runs out of it.
        overlap: of neighbouring windows, in pixels, at most half a window; by default 128, or a quarter of
            a window below 512.
        blend: what is averaged where windows overlap, with smooth weights: "logits" or "probabilities";
            "none" cuts the windows in the middle of the overlap.
        memory: bytes, or words such as "4GB": of the process, or with a model on another device of that
            device; the weights come on top. Only the default window depends on it.
        confidence: add a band: the probability of the class, 0 to 254 (65534 for uint16) for 0 to 1.
        polygons: also write the map's regions there, to `.gpkg` or `.geojson`, as `write_polygons` does.
        simplify: their outlines, in the map's units.
        engine, precision: what runs the model; see `open_engine`.
        progress: show a bar on stderr.

    Raises:
        DataError: the scene cannot be read, or does not have the bands that the model takes: 8-bit RGB, or
            as many as it was trained on, of any type that `open_raster` reads.
        OutputError: the output cannot be written, or would replace the scene.
        CCSegformerError: a memory that is too small or no amount of bytes, or a window or overlap outside
            the limits.
        EngineError: the engine cannot run the model, or the logits of a window are not finite.
        ValueError: an unknown blend.
    """
    output = Path(output)
    if blend not in get_args(Blend):
        raise ValueError(f"blend must be one of {', '.join(get_args(Blend))}, not {blend!r}")
    opened = open_engine(model, engine, precision)
    if len(classes) != opened.config.num_labels:
        raise DataError(f"{len(classes)} classes for a model of {opened.config.num_labels}")
    for written in [output] if polygons is None else [output, Path(polygons)]:
        check_writable(written)
        if not is_remote(path) and written.resolve() == Path(path).resolve():
            raise OutputError(f"{written}: would replace the scene; choose another output")
    with open_raster(path) as source:
        chosen, chosen_overlap = choose_window(opened, window, overlap, memory, source.dtypes[0])
        if polygons is not None:
            check_polygon_output(source, polygons, simplify)
    notes: tuple[str, ...] = ()
    while True:
        try:
            done = _map(
                opened,
                path,
                output,
                classes,
                chosen,
                chosen_overlap,
                blend=blend,
                confidence=confidence,
                polygons=polygons,
                simplify=simplify,
                progress=progress,
            )
            return done._replace(notes=(*notes, *done.notes))
        except OutOfMemoryError:
            smaller = chosen // 2 // STEP * STEP
            if window is not None or smaller < SMALLEST_WINDOW:
                raise
            notes = (
                f"{path}: windows of {chosen} did not fit into {opened.device}'s memory: took {smaller}",
            )
            chosen, chosen_overlap = choose_window(opened, smaller, overlap, memory)


def _map(
    opened: Engine,
    path: str | Path,
    output: Path,
    classes: Classes,
    window: int,
    overlap: int,
    *,
    blend: Blend,
    confidence: bool,
    polygons: str | Path | None,
    simplify: float | None,
    progress: bool,
) -> SceneMap:
    """`predict_scene`, of a window that is chosen."""
    folder = journal.folder_for(output)
    with open_raster(path) as source:
        bands, dtype = len(image_bands(source)), source.dtypes[0]
        statistics = input_statistics(opened.config, bands, dtype, path)
        rows, columns = (
            spans(side, window, overlap, taper=blend != "none") for side in (source.height, source.width)
        )
        run = _Run(opened, statistics, path, folder, rows, columns, blend, map_format(classes, confidence))
        with journal.locked(folder):
            job = _job(run, source, classes)
            try:
                done = journal.read_progress(folder, job)
                if not done.windows:
                    journal.begin(folder, job)
                    require_space(folder, map_bytes(source.height, source.width, run.format))
                    create_map(run.growing, source, classes, run.format)
                done = _label(run, done, progress)
                write_cog(run.growing, folder / "map.tif", classes)
                if polygons is not None:
                    write_polygons(folder / "map.tif", polygons, classes=classes, simplify=simplify)
                _publish(folder / "map.tif", output)
            except EngineError:
                journal.discard(folder)
                raise
            except DataError:
                if not is_remote(path):  # a network comes back, a damaged file does not
                    journal.discard(folder)
                raise
            except OutputError as error:
                if journal.read_progress(folder, job).windows:
                    raise OutputError(f"{error}; what is done is kept, run again to go on") from error
                journal.discard(folder)
                raise
            journal.discard(folder)
        return SceneMap(output, window, overlap, _notes(source, path, done.pixels))


def _label(run: _Run, done: journal.Progress, progress: bool) -> journal.Progress:
    """Label the windows that are left, in raster order, and say what is done then."""
    device = run.engine.device
    grid = list(product(run.rows, run.columns))
    right = load_scores(run.right(done.windows - 1), device)
    written: Future[None] | None = None
    with (
        _bar(progress) as bar,
        ThreadPoolExecutor(1) as writer,
        _ahead(_read(run.path, grid[done.windows :])) as tiles,
    ):
        task = bar.add_task(Path(run.path).name, total=len(grid), completed=done.windows)
        for tile in tiles:
            row, column = divmod(done.windows, len(run.columns))
            logits = None
            if tile.valid.any():
                image = torch.from_numpy(tile.image).to(device)
                logits = window_logits(run.engine, normalize(image, run.statistics), run.path)
            if written is not None:
                written.result()
            labelled, carry = None, None
            if logits is not None:
                labelled, carry = label_window(
                    logits,
                    tile.rows,
                    tile.columns,
                    blend=run.blend,
                    right=right if column else None,
                    below=load_scores(run.below(row - 1, column), device) if row else None,
                    confidence=run.format.confidence,
                )
            right = carry.right if carry else None
            done = journal.Progress(done.windows + 1, done.pixels + int(tile.final.sum()))
            written = writer.submit(_write, run, tile, labelled, carry, done)
            bar.advance(task)
        if written is not None:
            written.result()
    return done


def _write(
    run: _Run, tile: _Tile, labelled: Labelled | None, carry: Carry | None, done: journal.Progress
) -> None:
    """Put a window's share on disk, then count it as done."""
    index = done.windows - 1
    row, column = divmod(index, len(run.columns))
    if labelled is not None and tile.final.any():
        bands = [labelled.labels] if labelled.confidence is None else [*labelled]
        dtype, nodata = run.format.dtype, run.format.nodata
        found = []
        for band in bands:
            assert band is not None
            values = band.clamp(max=1) * run.format.largest + 0.5 if band.is_floating_point() else band
            found.append(np.where(tile.final, values.cpu().numpy().astype(dtype), np.asarray(nodata, dtype)))
        box = Box(tile.rows.rise, tile.columns.rise, tile.rows.fall, tile.columns.fall)
        write_box(run.growing, box, found)
    save_scores(run.right(index), carry.right if carry else None)
    save_scores(run.below(row, column), carry.below if carry else None)
    journal.write_progress(run.folder, done)


def _read(path: str | Path, grid: list[tuple[Span, Span]]) -> Generator[_Tile]:
    """What is in each window of the scene."""
    with open_raster(path) as source:
        for rows, columns in grid:
            values, valid = read_box(source, Box(rows.start, columns.start, rows.stop, columns.stop))
            yield _Tile(rows, columns, fill_gaps(values, valid), valid)


@contextmanager
def _ahead(tiles: Generator[_Tile]) -> Iterator[Iterator[_Tile]]:
    """The same, each read in a thread of its own while the one before is in use."""
    with ThreadPoolExecutor(1) as reader:

        def follow() -> Iterator[_Tile]:
            coming = reader.submit(next, tiles, None)
            while (tile := coming.result()) is not None:
                coming = reader.submit(next, tiles, None)
                yield tile

        try:
            yield follow()
        finally:
            reader.submit(tiles.close).result()  # where it was opened


def _job(run: _Run, source: DatasetReader, classes: Classes) -> dict[str, Any]:
    """All that the bytes of the map depend on."""
    job: dict[str, Any] = {
        "scene": str(run.path),
        "size": [source.height, source.width],
        "transform": list(source.transform),
        "crs": source.crs.to_wkt() if source.crs else None,
        "rows": run.rows,
        "columns": run.columns,
        "blend": run.blend,
        "format": run.format,
        "names": classes.names,
        "palette": classes.palette,
        "weights": run.engine.digest(),
        "model": run.engine.config.to_json_string(),
        "engine": run.engine.describe(),
        "versions": [__version__, torch.__version__],
    }
    if not is_remote(run.path):
        status = Path(run.path).stat()
        job["file"] = [str(Path(run.path).resolve()), status.st_size, status.st_mtime_ns]
    return dict(json.loads(json.dumps(job)))


def _publish(finished: Path, output: Path) -> None:
    """Give a whole map its name, with its class names beside it."""
    names = finished.with_name(f"{finished.name}.aux.xml")
    try:
        names.replace(output.with_name(f"{output.name}.aux.xml"))
        finished.replace(output)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error


def _notes(source: DatasetReader, path: str | Path, pixels: int) -> tuple[str, ...]:
    notes = []
    if source.crs is None and not source.gcps[0]:
        notes.append(f"{path}: has no coordinate reference system, and neither has the map")
    if not pixels:
        notes.append(f"{path}: no pixel has data, and the map is empty")
    return tuple(notes)


def _bar(shown: bool) -> Progress:
    """Windows done, windows a second and the time left, on stderr where that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("windows"),
        _SpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )


class _SpeedColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.2f}/s" if speed else "")
