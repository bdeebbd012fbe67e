"""Data sets by name: generated scenes, SceneParse150, a folder, or Hugging Face's parquet files."""

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode

from ccsegformer.data.folder import ImageMaskFolder
from ccsegformer.errors import DataError, optional_imports

if TYPE_CHECKING:
    from ccsegformer.data.parquet import ParquetImages
    from ccsegformer.data.procedural.scenes import ProceduralScenes
    from ccsegformer.raster.dataset import Scenes

PROCEDURAL_COUNTS = {"training": 400, "validation": 60}
OPTIONS = ("image", "mask", "classes")
RESERVED = ("procedural", "scene_parse_150")


def open_dataset(
    data: str | Path, split: str
) -> "ImageMaskFolder | ProceduralScenes | ParquetImages | Scenes":
    """Open a split of `data`.

    Args:
        data: "procedural", the generated scenes; "scene_parse_150", once fetched; a folder of images and
            masks; a folder of georeferenced scenes; a folder of parquet files; or
            `hf://datasets/ORG/NAME[@REVISION][/FOLDER]`. Behind the last two may stand their columns and
            classes, behind scenes their classes, see `with_options`.
        split: "training", "validation" or another that the data have.

    Raises:
        DataError: the data or the split cannot be used.
    """
    name, options = _parse(str(data))
    if name.startswith("hf://") or _holds_parquet(Path(name)):
        from ccsegformer.data.parquet import ParquetImages

        with optional_imports(name):
            return ParquetImages(name, split, **options)
    if name not in RESERVED and _holds_scenes(Path(name), split) and options.keys() <= {"classes"}:
        from ccsegformer.raster.dataset import Scenes

        with optional_imports(name):
            return Scenes(name, split, **options)
    if options:
        raise DataError(f"{name}: has no parquet files, whose columns or classes could be chosen")
    if name == "scene_parse_150":
        from ccsegformer.data.scene_parse_150.fetch import fetched_folder

        return ImageMaskFolder(fetched_folder(), split)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists():
        raise DataError(f"{name}: no such folder; a set on the hub is named hf://datasets/{name}")
    if name != "procedural":
        return ImageMaskFolder(name, split)
    if split not in PROCEDURAL_COUNTS:
        raise DataError(f"procedural: no split {split!r}; the splits are {', '.join(PROCEDURAL_COUNTS)}")
    from ccsegformer.data.procedural.scenes import ProceduralScenes

    return ProceduralScenes(split, count=PROCEDURAL_COUNTS[split])


def with_options(data: str, **options: str | None) -> str:
    """Choose columns and classes of parquet files, or classes of scenes.

    `data` becomes `DATA?image=NAME&mask=NAME&classes=FILE`. Thus they travel as one string wherever data are
    named: in recipes, results and commands. An option that is None stays as `data` has it. Meanings and
    defaults are those of `ParquetImages` and `Scenes`.

    Raises:
        DataError: `data` has something else behind a "?".
    """
    given = {key: value for key, value in options.items() if value is not None}
    if not given:
        return data
    name, present = _parse(data)
    return f"{name}?{urlencode(present | given, quote_via=quote, safe='/')}"


def _parse(data: str) -> tuple[str, dict[str, str]]:
    """The location, and the options behind its "?"."""
    name, mark, query = data.rpartition("?")
    if not mark or Path(data).exists():
        return data, {}
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True))
    except ValueError:
        options = {query: ""}
    for key in options:
        if key not in OPTIONS:
            raise DataError(
                f"{data}: unknown {key!r}; behind '?' may stand {', '.join(OPTIONS)}, as 'image=NAME'"
            )
    return name, options


def _holds_scenes(folder: Path, split: str) -> bool:
    """Whether a folder has the layout of `Scenes`: its splits are right in it."""
    return not (folder / "images").is_dir() and ((folder / split).is_dir() or any(folder.glob("*/*.tif")))


def _holds_parquet(folder: Path) -> bool:
    """Whether a folder is one of parquet files, as the hub lays them out, and not one of images."""
    depths = ("*.parquet", "*/*.parquet", "*/*/*.parquet")
    return not (folder / "images").is_dir() and any(any(folder.glob(depth)) for depth in depths)
