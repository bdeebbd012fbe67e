"""Map a scene of any size with any segmenter: raster in, Cloud-Optimized GeoTIFF out."""

import tempfile
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from torch import Tensor

from ccsegformer import __version__
from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError, OutOfMemoryError, OutputError, optional_imports
from ccsegformer.files import check_writable, require_space
from ccsegformer.labelling.budget import MEMORY, SMALLEST_WINDOW, choose_window
from ccsegformer.labelling.engine import Engine, EngineName, Precision, Segmenter
from ccsegformer.labelling.loading import open_segmenter
from ccsegformer.labelling.model_item import bands_by_name
from ccsegformer.labelling.preprocess import Preprocessing
from ccsegformer.labelling.windows import (
    STEP,
    Labelled,
    OverlapAdd,
    Span,
    compute_part,
    default_overlap,
    spans,
)
from ccsegformer.raster.mapping import MapCell, ProgressFunction, Tile, rows_done, scratch_folder, write_map
from ccsegformer.raster.read import Box, alpha_note, check_bands, image_bands, open_raster, pixel_dtype
from ccsegformer.raster.source_files import files_of, side_files
from ccsegformer.raster.write import MapFormat, map_bytes, map_format


class SceneMap(NamedTuple):
    """A map that was written, and how."""

    path: Path
    window: int
    overlap: int
    notes: tuple[str, ...]
    """Warnings for the user, such as a missing CRS."""


def predict_scene(
    model: Segmenter | Engine | str | Path,
    path: str | Path,
    output: str | Path,
    *,
    classes: Classes | None = None,
    preprocessing: Preprocessing | None = None,
    bands: tuple[int, ...] | None = None,
    window: int | None = None,
    overlap: int | None = None,
    memory: int | str = MEMORY,
    confidence: bool = False,
    polygons: str | Path | None = None,
    simplify: float | None = None,
    engine: EngineName | None = None,
    precision: Precision | None = None,
    progress: bool | ProgressFunction = False,
) -> SceneMap:
    """Label every pixel of a georeferenced raster window by window, in bounded memory.

    The map has the scene's size, CRS and transform. It holds class ids, uint8, or uint16 for more than 255
    classes, with the classes' colours and names; pixels without data hold the ignore index, or the largest
    value of the dtype if the ignore index does not fit. The map appears when it is whole. An interrupted run
    goes on when it is started again with the same arguments, and writes the same bytes; until then, what is
    done is in `.NAME.partial` beside the output. The disk must have room for twice the uncompressed map, and
    for the logits that wait for the next row of windows.

    Where windows overlap, their logits are averaged with smooth weights.

    Args:
        model: any segmenter, in any mode: a model of this package or of transformers, another module, or a
            function from normalised pixels (batch, bands, H, W) to logits (batch, K, h, w) of any resolution;
            the name or path of a trained model; an .onnx, .xml or .pt2 file, or a STAC item of one; or an
            open engine. A function cannot be recognised when it is run again, so its runs start afresh.
        path: anything that GDAL opens: a file, `/vsicurl/https://...`, `s3://...`.
        output: GeoTIFF to write; an existing one is replaced.
        classes: class names and colours; by default those that the model names.
        preprocessing: bands and normalisation that the model expects; by default what the model says, else
            8-bit RGB by ImageNet's statistics.
        bands: numbers, from 1, of the scene's bands to use, in the model's order; by default those that
            an item names, if the scene does too, else all but alpha.
        window: side of the square that the network sees, in pixels, at least 32; by default the fastest that
            fits into `memory`, see `budget`, and halved whenever the device runs out of memory.
        overlap: overlap of neighbouring windows in pixels, at most half a window; by default 128, or a
            quarter of a window below 512.
        memory: bytes, or words such as "4GB", for the process, or for the model's device if that is not the
            CPU, weights not counted. Only the default window of SegFormers depends on it.
        confidence: whether to add a band with the probability of the class: 0 to 254 (65534 for uint16).
        polygons: also write the map's regions to this `.gpkg`, `.geojson` or `.parquet`, as
            `write_polygons` does.
        simplify: tolerance for their outlines, in the map's units.
        engine, precision: see `open_engine`.
        progress: whether to show a bar on stderr; or a function that is called after each window with the
            numbers of windows done and in all. An exception in it ends the run and discards what is done.

    Raises:
        DataError: the scene cannot be read, or its bands or dtype do not suit the model; the classes are
            unknown, or not one for each of the model's.
        OutputError: the output cannot be written, or would replace the scene.
        CCSegformerError: `memory` is too small or no amount of bytes; a window or overlap outside the limits.
        EngineError: the engine cannot run the model, or the logits of a window are not finite.
    """
    output = Path(output)
    opened, classes = open_segmenter(model, classes, engine, precision, preprocessing)
    for written in [output] if polygons is None else [output, Path(polygons)]:
        check_writable(written)
    with open_raster(path) as source:
        _keep_scene(source, [output] if polygons is None else [output, Path(polygons)])
        if not scratch_folder(output).is_dir():  # what an interrupted run wrote is on the disk already
            require_space(
                output.parent, 2 * map_bytes(source.height, source.width, map_format(classes, confidence))
            )
        chosen = _choose_bands(bands, opened, source, path)
        dtype, size = pixel_dtype(source, chosen), source.shape
        count = source.count
        alpha = alpha_note(source, path) if bands is None and not opened.scene_bands else None
        has_crs = bool(source.crs or source.gcps[0] or source.rpcs)
        if polygons is not None:
            with optional_imports(str(polygons)):
                from ccsegformer.raster.polygons import check_polygon_output

            check_polygon_output(source, polygons, simplify)
    opened.preprocessing.check(len(chosen), dtype, path)
    halved: list[str] = []
    notes = [] if has_crs else [f"{path}: has no coordinate reference system, so neither has the map"]
    if opened.scene_bands and chosen != opened.scene_bands:
        trained = _bands_text(opened.scene_bands)
        notes.append(f"{path}: bands {_bands_text(chosen)}; the model was trained on bands {trained}")
    if alpha:
        notes.append(f"{alpha}; to use it: --bands {','.join(map(str, range(1, count + 1)))}")
    side, shared = choose_window(opened, window, overlap, memory, dtype)
    run = _Run(opened, path, chosen, size, side, shared, map_format(classes, confidence), output)
    if window is None:
        run = _resumed(run, classes)
    while True:
        try:
            pixels = _write(run, classes, polygons, simplify, progress)
            break
        except OutOfMemoryError:
            if window is not None or not (smaller := _halved(run)):
                raise
            memory_of = f"{opened.device}'s memory"
            halved = [f"{path}: windows of {run.window} did not fit into {memory_of}: took {smaller.window}"]
            run = smaller
    if not pixels:
        notes.append(f"{path}: no pixel has data, and the map is empty")
    return SceneMap(output, run.window, run.overlap, (*halved, *notes))


def _keep_scene(source: DatasetReader, outputs: list[Path]) -> None:
    """Refuse outputs that would replace the scene, or a file that it is made of."""
    scene = files_of(source)
    for output in outputs:
        for written in (output, *side_files(output)):
            if written.resolve() in scene:
                part = "the scene" if _same(written, source.name) else f"a file of the scene {source.name}"
                raise OutputError(f"{written}: would replace {part}; choose another output")


def _same(path: Path, name: str) -> bool:
    return path.resolve() == Path(name).resolve()


class _Run(NamedTuple):
    """What stays the same while a scene is mapped."""

    engine: Engine
    path: str | Path
    bands: tuple[int, ...]
    """Numbers, from 1, of the bands to use."""
    size: tuple[int, int]
    window: int
    overlap: int
    format: MapFormat
    output: Path

    @property
    def sides(self) -> tuple[list[Span], list[Span]]:
        """Rows and columns of windows."""
        rows, columns = (spans(side, self.window, self.overlap) for side in self.size)
        return rows, columns


def _halved(run: _Run) -> _Run | None:
    """Return the run with windows of half the size, or None if they would be too small."""
    side = run.window // 2 // STEP * STEP
    if side < SMALLEST_WINDOW:
        return None
    return run._replace(window=side, overlap=min(run.overlap, default_overlap(side)))


def _resumed(run: _Run, classes: Classes) -> _Run:
    """Return the run, or the one with smaller windows that was interrupted after memory had run out."""
    smaller: _Run | None = run if scratch_folder(run.output).is_dir() else None
    while smaller:
        if rows_done(run.path, run.output, _job(smaller, classes)):
            return smaller
        smaller = _halved(smaller)
    return run


def _choose_bands(
    bands: tuple[int, ...] | None, engine: Engine, source: DatasetReader, path: str | Path
) -> tuple[int, ...]:
    """Check the wanted bands, which may be alpha.

    By default they are those of the model's names, those it was trained on, or all but alpha.
    """
    names = engine.band_names
    if bands is not None:
        check_bands(source, bands, path)
        return bands
    found, every = bands_by_name(names, source.descriptions), tuple(image_bands(source))
    if engine.scene_bands and not found:
        try:
            check_bands(source, engine.scene_bands, path)
        except DataError as error:
            raise DataError(
                f"{error}, and the model was trained on bands {_bands_text(engine.scene_bands)}: choose the "
                "same of this scene, in this order, with --bands"
            ) from error
        return engine.scene_bands
    if names and not found and len(every) != len(names):
        raise DataError(
            f"{path}: {len(every)} bands for a model of {len(names)}, {', '.join(names)}: choose them, in "
            "this order, with --bands"
        )
    return found or every


def _bands_text(bands: tuple[int, ...]) -> str:
    return ",".join(map(str, bands))


def _write(
    run: _Run,
    classes: Classes,
    polygons: str | Path | None,
    simplify: float | None,
    progress: bool | ProgressFunction,
) -> int:
    """Write the map, and polygons if they are wanted; return the number of pixels with data."""

    def finish(finished: Path) -> None:
        if polygons is not None:
            from ccsegformer.raster.polygons import write_polygons

            write_polygons(finished, polygons, classes=classes, simplify=simplify)

    rows, columns = run.sides
    grid = [[_cell(row, column) for column in columns] for row in rows]
    labeller = OverlapAdd(
        len(columns), confidence=run.format.confidence, keep=partial(_spill, scratch_folder(run.output))
    )
    return write_map(
        run.path,
        run.output,
        grid=grid,
        bands=run.bands,
        compute=partial(_compute, run, rows, columns, labeller),
        classes=classes,
        format=run.format,
        job=_job(run, classes),
        scratch_bytes=_waiting_bytes(run, len(classes)),
        finish=finish,
        progress=progress,
    )


def _cell(rows: Span, columns: Span) -> MapCell:
    return MapCell(
        Box(rows.start, columns.start, rows.stop, columns.stop),
        Box(rows.rise, columns.rise, rows.fall, columns.fall),
    )


def _compute(
    run: _Run, rows: list[Span], columns: list[Span], labeller: OverlapAdd, tile: Tile
) -> list[NDArray[np.generic]] | None:
    """Label a window's block."""
    if tile.image is None:
        labeller.add(tile.column, None)
        return None
    try:
        image = torch.from_numpy(tile.image).to(run.engine.device)
        pixels = run.engine.preprocessing.apply(image)
        part = compute_part(run.engine, pixels, rows[tile.row], columns[tile.column], run.path)
        labelled = labeller.add(tile.column, part)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"{run.path}: a window of {run.window} pixels ran out of memory") from error
    assert labelled is not None
    return _encode(labelled, run.format)


def _encode(labelled: Labelled, format: MapFormat) -> list[NDArray[np.generic]]:
    """Turn labels and confidence into the bands of the map."""
    found = [labelled.labels]
    if labelled.confidence is not None:
        found.append(labelled.confidence.clamp(max=1) * format.largest + 0.5)
    return [band.cpu().numpy().astype(format.dtype) for band in found]


def _spill(folder: Path, logits: Tensor) -> Tensor:
    """Move logits to a temporary file, so that memory does not depend on the width of the scene.

    The file is mapped into memory and removed at once; its disk space is free when the tensor is.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            logits.cpu().numpy().tofile(file)
        mapped = torch.from_file(file.name, shared=False, size=logits.numel(), dtype=torch.float32)
        with suppress(PermissionError):  # Windows; the folder goes when the map is written
            Path(file.name).unlink()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return mapped.view(logits.shape)


def _waiting_bytes(run: _Run, num_classes: int) -> int:
    """Estimate the disk space of logits that wait for the windows below, two rows of them at a time.

    SegFormer's logits have a quarter of the image's resolution; other networks' may have the full resolution.
    """
    stride = 4 if run.engine.config else 1
    rows = min(run.overlap, run.size[0]) // stride + 2
    columns = sum(span.size for span in run.sides[1]) // stride
    return 2 * 4 * num_classes * rows * columns


def _job(run: _Run, classes: Classes) -> dict[str, Any]:
    """Collect everything that the bytes of the map depend on beside the scene."""
    digest = run.engine.digest
    return {
        "window": [run.window, run.overlap],
        "bands": run.bands,
        "format": run.format,
        "names": classes.names,
        "palette": classes.palette,
        # A function has no digest, so its runs are not resumed.
        "weights": digest() if digest else uuid.uuid4().hex,
        "model": run.engine.config.to_json_string() if run.engine.config else None,
        "preprocessing": run.engine.preprocessing,
        "engine": run.engine.describe(),
        "versions": [__version__, torch.__version__],
    }
