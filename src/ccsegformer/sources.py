"""Open data sets by name: generated scenes, SceneParse150, folders, and Hugging Face parquet files."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode

from ccsegformer.data.dataset import DrawnSamples, LabelledImages
from ccsegformer.data.folder import ImageMaskFolder
from ccsegformer.data.labels import Classes
from ccsegformer.data.objects import as_dataset, own_classes
from ccsegformer.errors import DataError, optional_imports

if TYPE_CHECKING:
    from ccsegformer.data.parquet import ParquetImages
    from ccsegformer.data.procedural.scenes import ProceduralScenes
    from ccsegformer.raster.dataset import Scenes

PROCEDURAL_COUNTS = {"training": 400, "validation": 60}
OPTIONS = {
    "parquet files": ("image", "mask", "classes"),
    "scenes": ("classes", "layer", "column", "bands"),
    "a folder of images": ("classes",),
    "a name of a set": (),
}
"""Options behind a name, by the kind of data that take them."""
RESERVED = ("procedural", "scene_parse_150")


def open_dataset(
    data: str | Path, split: str
) -> "ImageMaskFolder | ProceduralScenes | ParquetImages | Scenes":
    """Open a split of `data`.

    Args:
        data: "procedural" for generated scenes, "scene_parse_150" once fetched, a folder of images and masks,
            of georeferenced scenes or of parquet files, or `hf://datasets/ORG/NAME[@REVISION][/FOLDER]`.
            Options may follow for parquet files and folders; see `with_options`.
        split: "training", "validation" or another split of the data.

    Raises:
        DataError: The data or the split cannot be used.
    """
    name, options = _parse(str(data))
    kind = _kind(name, split)
    if unknown := [key for key in options if key not in OPTIONS[kind]]:
        others = f"; the options of {kind} are {', '.join(OPTIONS[kind])}" * bool(OPTIONS[kind])
        raise DataError(f"{name}: has no option {unknown[0]!r}{others}")
    if kind == "parquet files":
        from ccsegformer.data.parquet import ParquetImages

        with optional_imports(name):
            return ParquetImages(name, split, **options)
    if kind == "scenes":
        from ccsegformer.raster.dataset import Scenes

        with optional_imports(name):
            return Scenes(name, split, **options)
    if name == "scene_parse_150":
        from ccsegformer.data.scene_parse_150.fetch import fetched_folder

        return ImageMaskFolder(fetched_folder(), split)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists():
        raise DataError(f"{name}: no such folder; a set on the hub is named hf://datasets/{name}")
    if name != "procedural":
        return ImageMaskFolder(name, split, **options)
    if split not in PROCEDURAL_COUNTS:
        raise DataError(f"procedural: no split {split!r}; the splits are {', '.join(PROCEDURAL_COUNTS)}")
    from ccsegformer.data.procedural.scenes import ProceduralScenes

    return ProceduralScenes(split, count=PROCEDURAL_COUNTS[split])


def resolve_dataset(
    dataset: Any,
    split: str,
    classes: Classes | Sequence[str] | None = None,
    *,
    default: Classes | None = None,
) -> LabelledImages | DrawnSamples:
    """Return a data set ready to be read: opened by name, or adapted from an object (see `as_dataset`).

    Args:
        dataset: A name for `open_dataset`, or an object.
        split: Split to open by name; an object is a split already.
        classes: Classes of an object, or their names; by default the object's own.
        default: Classes of an object that has none.

    Raises:
        DataError: The data cannot be used, or `classes` is given for data that name their own.
    """
    if isinstance(dataset, str | Path) or _is_own(dataset):
        if classes is not None:
            raise DataError("classes= is for other data set objects; a name takes '?classes=FILE' behind it")
        return open_dataset(dataset, split) if isinstance(dataset, str | Path) else dataset
    if isinstance(dataset, DrawnSamples) and classes is not None:
        raise DataError(f"{type(dataset).__name__}: has its own classes; leave out classes=")
    return as_dataset(dataset, classes or own_classes(dataset) or default)


def with_options(data: str, **options: str | None) -> str:
    """Append options to the name of parquet files or a folder: `DATA?image=NAME&mask=NAME&classes=FILE`.

    The name then says everything in recipes, results and commands. Options that are None stay as they are in
    `data`. See `ParquetImages`, `ImageMaskFolder` and `Scenes` for their meanings and defaults.

    Raises:
        DataError: `data` has something else after a "?".
    """
    given = {key: value for key, value in options.items() if value is not None}
    if not given:
        return data
    name, present = _parse(data)
    return f"{name}?{urlencode(present | given, quote_via=quote, safe='/')}"


def _parse(data: str) -> tuple[str, dict[str, str]]:
    """Split a name into its location and the options after "?"."""
    name, mark, query = data.rpartition("?")
    if not mark or Path(data).exists():
        return data, {}
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True))
    except ValueError:
        options = {query: ""}
    known = dict.fromkeys(key for keys in OPTIONS.values() for key in keys)
    for key in options:
        if key not in known:
            raise DataError(
                f"{data}: unknown option {key!r} after '?'; use {', '.join(known)}, such as 'image=NAME'"
            )
    return name, options


def _kind(name: str, split: str) -> str:
    """Return which of `OPTIONS` a name stands for."""
    if name in RESERVED:
        return "a name of a set"
    if name.startswith("hf://") or _holds_parquet(Path(name)):
        return "parquet files"
    return "scenes" if _holds_scenes(Path(name), split) else "a folder of images"


def _is_own(dataset: Any) -> bool:
    """Whether the data set is one that `open_dataset` returns, which checks its samples itself."""
    from ccsegformer.data.parquet import ParquetImages
    from ccsegformer.data.procedural.scenes import ProceduralScenes
    from ccsegformer.raster.dataset import Scenes

    return isinstance(dataset, ImageMaskFolder | ParquetImages | ProceduralScenes | Scenes)


def _holds_scenes(folder: Path, split: str) -> bool:
    """Whether a folder has the layout of `Scenes`, with the splits at its top."""
    from ccsegformer.raster.read import RASTER_SUFFIXES

    if (folder / "images").is_dir():
        return False
    return (folder / split).is_dir() or any(
        path.suffix.lower() in RASTER_SUFFIXES for path in folder.glob("*/*")
    )


def _holds_parquet(folder: Path) -> bool:
    """Whether a folder holds parquet files in the hub's layout and not images, nor scenes with labels."""
    from ccsegformer.raster.read import RASTER_SUFFIXES

    depths = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
    if (folder / "images").is_dir() or any(any(folder.glob(f"*/*{end}")) for end in RASTER_SUFFIXES):
        return False
    return any(any(folder.glob(depth)) for depth in depths)
