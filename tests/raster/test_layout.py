"""Names of splits, and masks as PNG beside scenes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray
from PIL import Image

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import DataError
from ccsegformer.labelling.inputs import _expand
from ccsegformer.raster.dataset import Scenes
from ccsegformer.sources import open_dataset
from tests.raster.test_dataset import BARE, GRID, blobs, image, whole, write

CLASSES = Classes(("field", "wood", "water"))
SPLITS = [("training", "train"), ("validation", "val"), ("validation", "valid"), ("test", "testing")]


@pytest.mark.parametrize("suffix", [".tif", ".TIF", ".img"])
@pytest.mark.parametrize(("split", "folder"), SPLITS)
def test_splits_have_the_names_of_image_folders(split: str, folder: str, suffix: str, tmp_path: Path) -> None:
    write(tmp_path / folder / f"a{suffix}", image())  # GDAL looks at the content
    write(tmp_path / folder / "a_mask.tif", blobs() % 2)
    for name in (split, folder):
        scenes = open_dataset(tmp_path, name)
        assert isinstance(scenes, Scenes) and scenes.names == ("a_0_0",)
    with pytest.raises(DataError, match=rf"other: no such folder; the splits here are {folder}"):
        open_dataset(tmp_path, "other")


def test_the_recipe_s_own_name_comes_first(tmp_path: Path) -> None:
    for folder in ("train", "training"):
        write(tmp_path / folder / f"{folder}.tif", image())
        write(tmp_path / folder / f"{folder}_mask.tif", blobs() % 2)
    assert open_dataset(tmp_path, "training").names == ("training_0_0",)
    assert open_dataset(tmp_path, "train").names == ("train_0_0",)


def test_what_lies_in_a_split_without_scenes_is_said(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path / "val" / "a.tif", image())
    (tmp_path / "train" / "a.ecw").touch()
    with pytest.raises(DataError, match=r"train: no scenes \(.*\) in this split; it holds 1 \.ecw"):
        open_dataset(tmp_path, "training")


@pytest.mark.parametrize(("first", "second"), [("train", "val"), ("training", "valid"), ("train", "test")])
def test_overlaps_of_splits_of_other_names_are_warned_about(
    first: str, second: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (first, second):
        write(tmp_path / folder / "a.tif", image())
        write(tmp_path / folder / "a_mask.tif", blobs() % 2)
    Scenes(tmp_path, second)
    assert f"{second}/a.tif: overlaps {tmp_path / first}/a.tif of the other split" in capsys.readouterr().err
    Scenes(tmp_path, first)
    assert f"{first}/a.tif: overlaps {first}" not in capsys.readouterr().err


def png(path: Path, ids: NDArray[np.uint8], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids)
    if options.pop("palette", False):
        picture = picture.convert("P")
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("clear", [None, 0])
@pytest.mark.parametrize("placed", ["scene and mask", "scene", "neither"])
def test_png_masks_label_scenes(placed: str, clear: int | None, palette: bool, tmp_path: Path) -> None:
    write(tmp_path / "training" / "a.tif", image(), **(BARE if placed == "neither" else {}))
    options = {} if clear is None else {"transparency": clear}
    mask = png(tmp_path / "training" / "a_mask.png", blobs()[0], palette=palette, **options)
    write_classes(CLASSES, tmp_path / "classes.json")
    if placed == "scene and mask":
        a, b, c, d, e, f = GRID[:6]
        corner = (c + (a + b) / 2, f + (d + e) / 2)  # of the first pixel's centre
        mask.with_suffix(".pgw").write_text("\n".join(map(str, (a, d, b, e, *corner))))
    np.testing.assert_array_equal(whole(Scenes(tmp_path)), blobs()[0])


def test_png_masks_that_do_not_fit(tmp_path: Path) -> None:
    write(tmp_path / "training" / "a.tif", image())
    mask = png(tmp_path / "training" / "a_mask.png", blobs()[0, :60])
    with pytest.raises(DataError, match=r"a_mask\.png: 100x60 pixels for 100x70 of .*a\.tif, and no georef"):
        Scenes(tmp_path)
    png(mask, np.zeros((70, 100, 3), np.uint8))
    with pytest.raises(DataError, match=r"a_mask\.png: a mask is one band of class ids, but this has 3"):
        Scenes(tmp_path)
    mask.with_suffix(".pgw").write_text("9\n0\n0\n-9\n500000\n5000000")
    png(mask, blobs()[0])
    with pytest.raises(DataError, match=r"a_mask\.png: has no CRS and another grid than .*a\.tif"):
        Scenes(tmp_path)
    write(tmp_path / "training" / "a_mask.tif", blobs() % 2)
    with pytest.raises(DataError, match=r"a_mask\.tif: has the stem of a_mask\.png; rename one"):
        Scenes(tmp_path)
    (tmp_path / "training" / "a_mask.tif").unlink()
    mask.with_suffix(".pgw").unlink()
    png(tmp_path / "training" / "b_mask.png", blobs()[0])
    with pytest.raises(DataError, match=r"b_mask\.png: mask without a scene"):
        Scenes(tmp_path)


def test_a_folder_to_map_leaves_out_png_masks_of_scenes_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", image())
    for name in ("a_mask.png", "b_mask.png", "c.png", "c_mask.png"):
        png(tmp_path / name, blobs()[0])
    write(tmp_path / "c_mask.tif", blobs(), transform=Affine(1.0, 0, 0, 0, -1.0, 0))
    names = [path.name for path in _expand([tmp_path])]
    assert names == ["a.tif", "b_mask.png", "c.png", "c_mask.png"]
