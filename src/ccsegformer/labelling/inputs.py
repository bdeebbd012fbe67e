"""Label image files and scenes, and write the results to a folder."""

import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ccsegformer.config.protocol import EvaluationProtocol
from ccsegformer.data.images import read_image
from ccsegformer.data.labels import Classes, colorize
from ccsegformer.errors import CCSegformerError, DataError, EngineError, OutputError
from ccsegformer.files import write_atomically
from ccsegformer.labelling.budget import MEMORY, choose_window
from ccsegformer.labelling.engine import Engine, Segmenter, open_engine
from ccsegformer.labelling.labeller import MAX_MEGAPIXELS, predict_labels
from ccsegformer.labelling.scene import predict_scene
from ccsegformer.labelling.windows import label_image
from ccsegformer.raster.folders import images_in
from ccsegformer.raster.read import has_georeference, is_no_photograph, open_raster
from ccsegformer.raster.source_files import files_of, is_over_network, is_remote


def predict_files(
    model: Segmenter | Engine,
    classes: Classes,
    images: Sequence[str | Path],
    output: str | Path,
    *,
    window: int | None = None,
    overlap: int | None = None,
    memory: int | str = MEMORY,
    progress: bool = False,
    failed: list[CCSegformerError] | None = None,
) -> list[tuple[Path, Path]]:
    """Label images one by one, and return the two files written for each.

    `NAME.png` has the class ids at the image's own size (palette PNG in the classes' colours; 16-bit grey for
    more than 256 classes), `NAME_overlay.png` the image with the colours laid over it. Each file appears
    whole, and replaces one of the same name.

    An image is labelled in one piece; above 36 megapixels, or a given `window`, in overlapping windows as in
    `predict_scene`.

    Args:
        model: any segmenter, or an engine, see `open_engine`.
        classes: one for each of the model's.
        images: files; a folder stands for the images directly in it.
        output: folder.
        window, overlap, memory: see `predict_scene`.
        progress: whether to show a bar.
        failed: a list for the errors of single images, after which the others are labelled; by default the
            first such error is raised.

    Raises:
        DataError: before anything is written, for a missing file, a folder without images, or two images
            whose outputs have the same name; later, for an image that cannot be read, see `failed`.
        OutputError: an output would replace one of the images (before anything is written), or cannot be
            written.
        EngineError: the logits for an image are not finite, see `failed`.
    """
    engine, files = open_engine(model), list(_expand(images))
    targets = [_targets(file, Path(output)) for file in files]
    _refuse_collisions(files, targets)
    jobs = list(zip(files, targets, strict=True))
    console = Console(stderr=True)
    shown = progress and console.is_terminal
    written = []
    for file, (labels_path, overlay_path) in track(jobs, "Predicting", disable=not shown, console=console):
        try:
            image = read_image(file)
            labels = _label_file(engine, image, file, window, overlap, memory).numpy()
        except (DataError, EngineError) as error:
            _keep_or_raise(error, failed)
            continue
        write_atomically(labels_path, encode_labels(labels, classes))
        overlay = image.permute(1, 2, 0).numpy() // 2 + colorize(labels, classes) // 2
        write_atomically(overlay_path, _png(Image.fromarray(overlay)))
        written.append((labels_path, overlay_path))
    return written


def predict_inputs(
    engine: Engine,
    classes: Classes,
    inputs: Sequence[str],
    output: str | Path,
    *,
    progress: bool = False,
    scene_options: dict[str, Any] | None = None,
    failed: list[CCSegformerError] | None = None,
    **options: Any,
) -> Iterator[tuple[tuple[Path, ...], tuple[str, ...]]]:
    """Label images and scenes, and yield for each what was written, and warnings.

    An `output` that ends in .tif or .tiff is the map of the one scene given, georeferenced or not. Otherwise
    it is a folder: a georeferenced raster is mapped to `NAME.tif` there as by `predict_scene`, and any other
    image is written as by `predict_files`. A folder stands for the images directly in it, without the masks
    of scenes.

    Args:
        engine: engine returned by `load_engine`.
        classes: one for each of the model's.
        inputs: files, folders, or whatever GDAL opens over a network.
        output: one map, or a folder.
        progress: whether to show a bar on stderr.
        scene_options: options of `predict_scene` that images do not have: `bands`, `confidence`, `polygons`,
            `simplify`.
        failed: see `predict_files`; for scenes too.
        options: `window`, `overlap` and `memory`, see `predict_scene`.

    Raises:
        DataError, OutputError: as `predict_scene` and `predict_files`; before anything is written, for inputs
            whose outputs would have the same name or replace an input, and for polygons of several maps.
    """
    output, extra = Path(output), scene_options or {}
    polygons = extra.get("polygons")
    if output.suffix.lower() in (".tif", ".tiff"):
        if len(inputs) != 1 or Path(inputs[0]).is_dir():
            raise OutputError(f"{output}: a single map needs a single scene; name a folder")
        scenes, images = [(inputs[0], output)], []
    elif polygons is not None:
        raise OutputError(f"{polygons}: polygons are made of one map; name it, as in --output map.tif")
    else:
        remote = [path for path in inputs if is_remote(path)]
        files = [*remote, *map(str, _expand(path for path in inputs if not is_remote(path)))]
        scenes = [(path, output / f"{_map_name(path)}.tif") for path in files if _is_scene(path)]
        images = [path for path in files if path not in dict(scenes)]
        targets = [(target,) for _, target in scenes] + [_targets(Path(image), output) for image in images]
        parts = set[Path]().union(*(_parts(path) for path, _ in scenes))
        _refuse_collisions([Path(path) for path in [*(path for path, _ in scenes), *images]], targets, parts)
    if images and any(value not in (None, False) for value in extra.values()):
        given = ", ".join(name for name, value in extra.items() if value not in (None, False))
        raise DataError(f"{images[0]}: is not georeferenced, and {given} is for scenes; name a map: NAME.tif")
    for path, target in scenes:
        try:
            done = predict_scene(engine, path, target, classes=classes, progress=progress, **extra, **options)
        except (DataError, EngineError) as error:
            _keep_or_raise(error, failed)
            continue
        yield (done.path, *([] if polygons is None else [Path(polygons)])), done.notes
    if images:
        done_images = predict_files(
            engine, classes, images, output, progress=progress, failed=failed, **options
        )
        for written in done_images:
            yield written, ()


def encode_labels(labels: NDArray[np.integer], classes: Classes) -> bytes:
    """Encode class ids (H, W) as a PNG with the classes' palette, or in 16-bit grey for more than 256."""
    if len(classes) > 256:
        return _png(Image.fromarray(labels.astype(np.uint16)))
    picture = Image.fromarray(labels.astype(np.uint8)).convert("P")
    picture.putpalette([level for color in classes.palette for level in color])
    return _png(picture)


def _keep_or_raise(error: CCSegformerError, failed: list[CCSegformerError] | None) -> None:
    if failed is None:
        raise error
    failed.append(error)


def _label_file(
    engine: Engine,
    image: Tensor,
    file: Path,
    window: int | None,
    overlap: int | None,
    memory: int | str,
) -> Tensor:
    """Label an image in one piece if it fits, else in windows."""
    height, width = image.shape[1:]
    if engine.fixed_size is not None and window is None:
        window = min(engine.fixed_size)
    fits = max(height, width) <= window if window else height * width <= MAX_MEGAPIXELS * 1_000_000
    if fits:
        return predict_labels(engine, image, EvaluationProtocol(precision=engine.precision), name=str(file))
    return label_image(engine, image, *choose_window(engine, window, overlap, memory), name=file)


def _is_scene(path: str) -> bool:
    """Check whether a file is georeferenced, a GDAL path, or a raster of pixels that no photograph has."""
    return is_remote(path) or has_georeference(path) or is_no_photograph(path)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _expand(images: Iterable[str | Path]) -> Iterator[Path]:
    """Yield image files, and for a folder those directly in it, by name, without the masks of scenes."""
    for path in map(Path, images):
        if not path.exists():
            raise DataError(f"{path}: no such image")
        if path.is_dir():
            yield from images_in(path)
        else:
            yield path


def _map_name(path: str) -> str:
    """Name a map by its scene; a part of a file, such as `NETCDF:a.nc:b`, by all that chooses it: a_b."""
    if not is_remote(path) or re.match(r"/vsi|\w+://", path):
        return Path(path).stem
    parts = path.replace('"', "").split(":")[1:]
    names = (Path(part).stem if Path(part).is_file() else re.sub(r"\W+", "_", part) for part in parts)
    return "_".join(name.strip("_") for name in names)


def _targets(image: Path, output: Path) -> tuple[Path, Path]:
    return output / f"{image.stem}.png", output / f"{image.stem}_overlay.png"


def _parts(scene: str) -> set[Path]:
    """Return the files that a scene is made of, as far as they are local."""
    if not is_over_network(scene):
        with suppress(DataError), open_raster(scene) as source:  # said when its turn comes
            return files_of(source)
    return set()


def _refuse_collisions(
    images: Sequence[Path], targets: Sequence[tuple[Path, ...]], parts: Collection[Path] = ()
) -> None:
    sources = {image.resolve() for image in images} | set(parts)
    writers: dict[Path, Path] = {}
    for image, paths in zip(images, targets, strict=True):
        for path in paths:
            if path in writers:
                raise DataError(f"{image}: would be written to {path}, as {writers[path]} is; rename one")
            if path.resolve() in sources:
                raise OutputError(
                    f"{path}: would replace an image or a file of one; choose another output folder"
                )
            writers[path] = image
