"""Parquet files and objects refuse what folders refuse: contradicting palettes, JPEG masks, lone turns."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import rasterio
from PIL import Image

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.data.objects import as_dataset
from ccsegformer.errors import DataError
from ccsegformer.sources import open_dataset

CLASSES = Classes(("x", "y", "z"), ((1, 2, 3), (4, 5, 6), (9, 9, 8)))
IDS = np.array([[0, 1] * 2] * 4, np.uint8)  # square, so that no turn shows in the sides


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def encoded(image: Image.Image, kind: str = "png", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    image.save(file := io.BytesIO(), kind, **({"exif": exif} if orientation > 1 else {}))
    return file.getvalue()


def mask(colors: list[tuple[int, int, int]] | None = None) -> Image.Image:
    image = Image.fromarray(IDS)
    if colors:
        image.putpalette([level for color in colors for level in color])
    return image


def first_sample(source: str, folder: Path, image: bytes, mask: bytes) -> Any:
    """Read a pair of files from parquet, as Pillow images, or as decoded by the library `datasets`."""
    if source == "pairs":
        return as_dataset([(Image.open(io.BytesIO(image)), Image.open(io.BytesIO(mask)))], CLASSES)[0]
    rows = datasets.Dataset.from_dict({"image": [{"bytes": image}], "annotation": [{"bytes": mask}]})
    for column in ("image", "annotation"):
        rows = rows.cast_column(column, datasets.Image())
    if source == "library":
        return as_dataset(rows, CLASSES)[0]
    (folder / "data").mkdir()
    rows.to_parquet(folder / "data" / "train-0.parquet")
    write_classes(CLASSES, folder / "data" / "classes.json")
    return open_dataset(folder / "data", "training")[0]


IMAGE = Image.new("RGB", (4, 4))
SOURCES = pytest.mark.parametrize("source", ["parquet", "pairs", "library"])


@SOURCES
@pytest.mark.parametrize(
    ("colors", "wrong"),
    [([(4, 5, 6), (1, 2, 3)], True), ([(1, 2, 3), (4, 5, 6)], False), ([(7, 7, 8), (1, 2, 3)], False)],
)
def test_a_palette_that_contradicts_the_classes(
    tmp_path: Path, source: str, colors: list[tuple[int, int, int]], wrong: bool
) -> None:
    files = encoded(IMAGE), encoded(mask(colors))
    if not wrong:
        assert first_sample(source, tmp_path, *files)["mask"].tolist() == IDS.tolist()
        return
    with pytest.raises(DataError, match=r"id 0 has the colour \[4, 5, 6\], which is that of class 1, 'y'"):
        first_sample(source, tmp_path, *files)


@SOURCES
def test_a_jpeg_is_no_mask(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match="a JPEG as a mask"):
        first_sample(source, tmp_path, encoded(IMAGE), encoded(mask(), "jpeg"))


@pytest.mark.parametrize("source", ["parquet", "pairs"])
@pytest.mark.parametrize(("of_image", "of_mask"), [(3, 1), (1, 6), (2, 8)])
def test_a_turn_of_image_or_mask_alone(tmp_path: Path, source: str, of_image: int, of_mask: int) -> None:
    files = encoded(IMAGE, "jpeg", of_image), encoded(mask(), "png", of_mask)
    with pytest.raises(DataError, match=rf"has the EXIF orientation {of_mask}, but .* has {of_image}"):
        first_sample(source, tmp_path, *files)


@pytest.mark.parametrize("source", ["parquet", "pairs"])
def test_equal_turns_are_applied_to_both(tmp_path: Path, source: str) -> None:
    found = first_sample(source, tmp_path, encoded(IMAGE, "jpeg", 6), encoded(mask(), "png", 6))
    assert found["mask"].tolist() == np.rot90(IDS, -1).tolist()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_pair_that_only_gdal_reads(tmp_path: Path) -> None:
    for kind, bands in (("images", np.zeros((3, 4, 4), np.uint16)), ("annotations", IDS[None])):
        (tmp_path / kind / "training").mkdir(parents=True)
        shape = {"count": len(bands), "height": 4, "width": 4, "dtype": bands.dtype, "compress": "lerc"}
        with rasterio.open(tmp_path / kind / "training" / "a.tif", "w", **shape) as out:
            out.write(bands)
    write_classes(CLASSES, tmp_path / "classes.json")
    assert open_dataset(tmp_path, "training")[0]["mask"].tolist() == IDS.tolist()
