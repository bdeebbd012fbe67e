"""Hugging Face data sets in parquet files, on disk or on the hub, with an image and a mask column."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision import tv_tensors

from ccsegformer.data.dataset import Sample, check_size, to_labels
from ccsegformer.data.images import read_image, read_mask
from ccsegformer.data.labels import Classes
from ccsegformer.data.pairs import check_orientation, check_palette
from ccsegformer.data.scene_parse_150.fetch import COMMAND, NAME
from ccsegformer.data.scene_parse_150.labels import ReadMask, chosen_labels, folder_labels
from ccsegformer.errors import DataError

HUB = "hf://datasets/"


class ParquetImages(Dataset[Sample]):
    """Rows of a split, named by split and row, such as "training-000012".

    The split "training" may be called "train" in the files. The `datasets` library finds the splits and keeps
    a copy of the rows in its cache, which allows random access.

    Args:
        location: Folder of parquet files, or `hf://datasets/ORG/NAME[@REVISION][/FOLDER]` on the hub.
        split: Name of the split.
        image: Column of encoded image files.
        mask: Column of encoded mask files.
        classes: Path of a `classes.json`, or "scene_parse_150" for masks of raw ids; by default the folder's
            own (see `folder_labels`).

    Raises:
        DataError: No such data set, split or column, unreadable files, or unknown classes.
    """

    def __init__(
        self,
        location: str,
        split: str,
        *,
        image: str = "image",
        mask: str = "annotation",
        classes: str | None = None,
    ) -> None:
        self.location = location
        self._image, self._mask = image, mask
        builder = _find_builder(location)
        self.classes: Classes
        self._read_mask: ReadMask
        self.classes, self._read_mask = _find_labels(location, classes)
        splits = _load_splits(location, builder)
        found = "train" if split == "training" and split not in splits else split
        if found not in splits:
            raise DataError(f"{location}: no split {split!r}; the splits here are {', '.join(splits)}")
        columns = splits[found].column_names
        for column, option in ((image, "--image-column"), (mask, "--mask-column")):
            if column not in columns:
                raise DataError(
                    f"{location}: no column {column!r}; choose another of {', '.join(columns)} with {option}"
                )
        sources = (builder.config.data_files or {}).get(found, ())
        self.files = {str(path): (str(path),) for path in sources}
        self._rows = splits[found].with_format("arrow")
        self.names: tuple[str, ...] = tuple(f"{split}-{index:06}" for index in range(len(self._rows)))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Read a row and check its size and labels."""
        (image_name, image_file), (mask_name, mask_file) = (
            self._cell(index, column) for column in (self._image, self._mask)
        )
        image, mask = read_image(image_name, image_file), self._read_mask(mask_name, mask_file)
        check_orientation(mask, image, mask_name, image_name, (mask_file, image_file))
        check_size(mask, image, mask_name, image_name)
        if self._read_mask is read_mask and not self.classes.label_map:
            check_palette(mask, self.classes, mask_name, mask_file)
        mask = tv_tensors.Mask(to_labels(mask, self.classes, mask_name))
        return {"image": image, "mask": mask, "name": self.names[index]}

    def _cell(self, index: int, column: str) -> tuple[str, bytes]:
        """Return the name of a cell for messages, and its file: plain bytes or `datasets.Image`'s form."""
        name = f"{self.location}: {self.names[index]}, column {column!r}"
        value = self._rows[index][column][0].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise DataError(f"{name}: not an image file")
        return name, content


def _find_labels(location: str, classes: str | None) -> tuple[Classes, ReadMask]:
    if classes is not None:
        return chosen_labels(classes)
    if location.startswith(HUB):
        raise DataError(f"{location}: unknown classes; pass --classes with a classes.json or {NAME!r}")
    return folder_labels(Path(location))


def _find_builder(location: str) -> Any:
    """Find the `datasets.DatasetBuilder` of a data set, without reading images."""
    import datasets  # type: ignore[import-untyped]

    hub = re.fullmatch(rf"{HUB}([^/@]+/[^/@]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?(?:/(.+))?", location)
    if location.startswith(HUB) and not hub:
        raise DataError(f"{location}: must be {HUB}ORG/NAME, optionally followed by @REVISION and /FOLDER")
    with _quiet_datasets(location):
        if hub:
            name, revision, folder = hub.groups()
            return datasets.load_dataset_builder(name, revision=revision, data_dir=folder)
        return datasets.load_dataset_builder(str(Path(location).resolve()))


def _load_splits(location: str, builder: Any) -> Any:
    """Load all splits as a `datasets.DatasetDict`."""
    with _quiet_datasets(location):
        builder.download_and_prepare()
        return builder.as_dataset()


@contextmanager
def _quiet_datasets(location: str) -> Iterator[None]:
    """Silence the library, and turn every failure into a one-line DataError."""
    import datasets

    logging = datasets.logging
    verbosity, had_bars = logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:  # network, hub, pyarrow or disk
        if "scripts are no longer supported" in str(error):
            raise DataError(
                f"{location}: is a loading script, which the datasets library no longer runs; use a data set "
                f"of parquet files, or fetch the official SceneParse150 with '{COMMAND}'"
            ) from error
        raise DataError(f"{location}: {_root_cause(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()


def _root_cause(error: Exception) -> str:
    """Return the first line of the innermost cause."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)
