"""Compute a map of a scene window by window, in bounded memory; a run that was interrupted goes on.

One window is read ahead and one block is written behind while another is computed. Progress is recorded after
each row of windows; a resumed run computes the last finished row again, without writing it, since the blocks
below may depend on it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError, OutputError
from ccsegformer.files import require_space
from ccsegformer.raster import _journal as journal
from ccsegformer.raster._ahead import Window, read_ahead
from ccsegformer.raster.read import Box, open_raster
from ccsegformer.raster.remote import remote_state
from ccsegformer.raster.source_files import files_of, is_over_network, side_files
from ccsegformer.raster.write import MapFormat, create_map, map_bytes, opened_map, write_cog

ProgressFunction = Callable[[int, int], object]


class MapCell(NamedTuple):
    """One window of a map's grid."""

    window: Box
    """What is read of the scene."""
    block: Box
    """What is written once the window has been computed; the blocks of a grid tile the scene."""


class Tile(NamedTuple):
    """A window as it was read."""

    row: int
    column: int
    image: NDArray[np.uint8 | np.float32] | None
    """(bands, H, W), or None if no pixel has data."""


Compute = Callable[[Tile], list[NDArray[np.generic]] | None]
"""Returns the bands of the tile's block, each of the map's dtype, or None for a tile without data."""


def write_map(
    path: str | Path,
    output: Path,
    *,
    grid: list[list[MapCell]],
    bands: Sequence[int] | None = None,
    compute: Compute,
    classes: Classes,
    format: MapFormat,
    job: dict[str, Any],
    scratch_bytes: int = 0,
    finish: Callable[[Path], object] | None = None,
    progress: bool | ProgressFunction = False,
) -> int:
    """Write a map of the scene at `path` as a Cloud-Optimized GeoTIFF, which appears when it is whole.

    Until then, what is done is in `.NAME.partial` beside the output. A run that was killed, or
    stopped for lack of disk space or network, continues when the same job is started again.

    Args:
        path: scene; anything that GDAL opens.
        output: map to write.
        grid: rows of cells, in raster order.
        bands: numbers, from 1, of the bands to read; by default all but alpha.
        compute: computes the cells in that order; also called for tiles without data.
        classes: names and colours of the first band's values.
        format: dtype, nodata value and bands of the map.
        job: everything that the bytes of the map depend on beside the scene, as JSON values.
        scratch_bytes: disk space that `compute` needs beside the map.
        finish: called with the path of the finished map, before it gets its name.
        progress: whether to show a bar on stderr; or a function that is called after each window with the
            numbers of windows done and in all. An exception in it ends the run and discards what is done.

    Returns:
        The number of pixels with data.

    Raises:
        DataError: the scene cannot be read.
        OutputError: the map cannot be written, or another process is at work on it.
    """
    folder = journal.folder_for(output)
    growing, finished = growing_map(output), folder / "map.tif"
    with open_raster(path) as source, journal.locked(folder):
        job = _whole_job(job, path, source)
        try:
            done = journal.read_progress(folder, job)
            if not done.rows:
                journal.begin(folder, job)
                size = map_bytes(source.height, source.width, format)
                # Beside the map that grows, its compressed copy, which may be as large.
                require_space(folder, 2 * size + scratch_bytes)
                create_map(growing, source, classes, format)
            tiles = partial(read_ahead, path, bands)
            done = _compute_rows(path, folder, growing, grid, tiles, compute, format, done, progress)
            write_cog(growing, finished, classes)
            if finish is not None:
                finish(finished)
            _publish(finished, output)
        except OutputError as error:
            if journal.read_progress(folder, job).rows:
                raise OutputError(f"{error}; what is done is kept, run again to go on") from error
            journal.discard(folder)
            raise
        except Exception as error:
            is_whole = journal.read_progress(folder, job).rows == len(grid)
            comes_back = isinstance(error, DataError) and is_over_network(path)  # unlike a damaged file
            if not is_whole and not comes_back:
                journal.discard(folder)
            raise
        journal.discard(folder)
    return done.pixels


def rows_done(path: str | Path, output: Path, job: dict[str, Any]) -> int:
    """Return how many rows of windows an interrupted run of this job finished."""
    folder = journal.folder_for(output)
    if not folder.is_dir():
        return 0
    with open_raster(path) as source:
        return journal.read_progress(folder, _whole_job(job, path, source)).rows


def growing_map(output: Path) -> Path:
    """Return the raster in which the map grows; it holds whole rows of windows, and nodata below them."""
    return journal.folder_for(output) / "growing.tif"


def scratch_folder(output: Path) -> Path:
    """Return the folder in which `compute` may keep temporary files; it exists while it runs."""
    return journal.folder_for(output)


def _compute_rows(
    path: str | Path,
    folder: Path,
    growing: Path,
    grid: list[list[MapCell]],
    reading: Callable[[list[Box]], AbstractContextManager[Iterator[Window]]],
    compute: Compute,
    format: MapFormat,
    done: journal.Progress,
    progress: bool | ProgressFunction,
) -> journal.Progress:
    """Compute the rows of cells that are left, and return the final progress."""
    if done.rows == len(grid):
        return done
    first = max(0, done.rows - 1)
    cells = [cell for row in grid[first:] for cell in row]
    with (
        _bar(progress is True) as bar,
        ThreadPoolExecutor(1) as writer,
        reading([cell.window for cell in cells]) as tiles,
    ):
        total, finished = sum(map(len, grid)), sum(map(len, grid[: done.rows]))
        task = bar.add_task(Path(path).name, total=total, completed=finished)
        for number, row in enumerate(grid[first:], start=first):
            repeated = number < done.rows
            pixels = 0
            with opened_map(growing) as write, _waiting() as pending:
                for column, cell in enumerate(row):
                    image, valid = next(tiles)
                    bands = compute(Tile(number, column, image if valid.any() else None))
                    if repeated:
                        continue
                    bar.advance(task)
                    finished += 1
                    if callable(progress):
                        progress(finished, total)
                    has_data = _crop(valid, cell)
                    pixels += int(has_data.sum())
                    if pending:
                        pending.pop().result()
                    if bands is not None and has_data.any():
                        bands = [np.where(has_data, band, band.dtype.type(format.nodata)) for band in bands]
                        pending.append(writer.submit(write, cell.block, bands))
            if not repeated:
                done = journal.Progress(number + 1, done.pixels + pixels)
                journal.write_progress(folder, done)
    return done


def _crop(valid: NDArray[np.bool_], cell: MapCell) -> NDArray[np.bool_]:
    """Cut a cell's block out of what was read of its window."""
    top, left = cell.block.top - cell.window.top, cell.block.left - cell.window.left
    return valid[top : top + cell.block.height, left : left + cell.block.width]


@contextmanager
def _waiting() -> Iterator[list[Future[None]]]:
    """Wait for what is being written, even after an error: the map must not be closed meanwhile."""
    pending: list[Future[None]] = []
    try:
        yield pending
    finally:
        wait(pending)
    for future in pending:
        future.result()


def _whole_job(job: dict[str, Any], path: str | Path, source: DatasetReader) -> dict[str, Any]:
    """Add to a job what identifies the scene."""
    job = {
        **job,
        "scene": str(path),
        "size": [source.height, source.width],
        "transform": list(source.transform),
        "crs": source.crs.to_wkt() if source.crs else None,
    }
    states = [(file, file.stat()) for file in sorted(files_of(source))]
    if is_over_network(path):
        with suppress(DataError):  # GDAL may know how to ask
            job["state"] = remote_state(str(path))
    job["files"] = [[str(file), status.st_size, status.st_mtime_ns] for file, status in states]
    return dict(json.loads(json.dumps(job)))


def _publish(finished: Path, output: Path) -> None:
    """Give a finished map its name and class names; what lay beside an earlier map goes with it."""
    names = finished.with_name(f"{finished.name}.aux.xml")
    try:
        for left in side_files(output):
            left.unlink(missing_ok=True)
        names.replace(output.with_name(f"{output.name}.aux.xml"))
        finished.replace(output)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error


def _bar(shown: bool) -> Progress:
    """Show windows done, windows a second and the time left, on stderr if it is a terminal."""
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
