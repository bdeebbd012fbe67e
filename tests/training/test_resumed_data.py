"""A run resumes with the data that it began with, or says what differs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from rasterio.vrt import WarpedVRT

from ccsegformer.data.objects import as_dataset
from ccsegformer.errors import DataError
from ccsegformer.sources import open_dataset
from ccsegformer.training._data_record import RECORD, check_same_data, record_data, write_data_record
from ccsegformer.training.recipe import Recipe
from ccsegformer.training.trainer import train
from tests.training.test_labels import NAMES, write_parquet, write_scenes

FOLDERS = ("images", "annotations")


def remove(data: Path) -> None:
    for folder in FOLDERS:
        (data / folder / "training" / "3.png").unlink()


def add(data: Path) -> None:
    for folder in FOLDERS:
        path = data / folder / "training" / "3.png"
        (path.parent / "9.png").write_bytes(path.read_bytes())


def rename(data: Path) -> None:
    for folder in FOLDERS:
        path = data / folder / "training" / "3.png"
        path.rename(path.with_stem("three"))


def edit_mask(data: Path) -> None:
    path = data / "annotations" / "training" / "3.png"
    Image.fromarray(np.array(Image.open(path))[::-1]).save(path)


def edit_image(data: Path) -> None:
    path = data / "images" / "training" / "3.png"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # as many bytes, another time


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (remove, "5 samples, now 4; 3 is no longer there"),
        (add, "5 samples, now 6; 9 is new"),
        (rename, "3 is no longer there; three is new"),
        (edit_mask, "3.png is changed (other size or time)"),
        (edit_image, "3.png is changed (other size or time)"),
    ],
)
def test_changed_images_are_refused_with_what_differs(
    change: Callable[[Path], None], says: str, tmp_path: Path, data: Path, recipe: Callable[..., Recipe]
) -> None:
    one_step, output = recipe(training={"steps": 1}), tmp_path / "run"
    train(one_step, data, output, progress=False)
    train(one_step, data, output, resume=True, progress=False)
    change(data)
    with pytest.raises(DataError) as caught:
        train(one_step, data, output, resume=True, progress=False)
    assert str(caught.value) == (
        f"{output / RECORD}: the run to resume had other data: {says}; restore them, or train again with "
        "overwrite"
    )
    (output / RECORD).unlink()  # a run of an earlier version has none
    train(one_step, data, output, resume=True, progress=False)


@pytest.mark.parametrize(
    ("write", "name"),
    [(write_scenes, "s_mask.tif"), (write_scenes, "s.tif"), (write_parquet, "train-0.parquet")],
)
def test_scenes_and_parquet_files_are_told_apart(
    write: Callable[[Path, str], Path], name: str, tmp_path: Path
) -> None:
    data = write(tmp_path / "data", "0 alone")
    write_data_record(tmp_path, record_data(open_dataset(data, "training")))
    check_same_data(tmp_path, record_data(open_dataset(data, "training")))
    [path] = data.rglob(name)
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match=f"{name} is changed"):
        check_same_data(tmp_path, record_data(open_dataset(data, "training")))


def test_objects_are_told_apart_by_their_names(tmp_path: Path) -> None:
    class Named(list[str]):
        names: tuple[str, ...] = ("a", "b")
        classes = NAMES

    write_data_record(tmp_path, record_data(Named("ab")))
    check_same_data(tmp_path, record_data(Named("ab")))
    other = Named("ab")
    other.names = ("a", "c")
    with pytest.raises(DataError, match="other names of the samples"):
        check_same_data(tmp_path, record_data(other))


class Objects(list[Any]):
    """Pairs of image and mask; "random" ones are shifted anew each time."""

    classes = NAMES
    is_random = False
    targets: tuple[Any, ...] = ()

    def __getitem__(self, index: Any) -> Any:
        image, mask = super().__getitem__(index)
        return image, np.roll(mask, np.random.randint(8), 1) if self.is_random else mask  # noqa: NPY002


def make_objects() -> Objects:
    mask = np.repeat(np.arange(8) > 3, 8).reshape(8, 8).T.astype(np.uint8)
    return Objects((np.zeros((8, 8, 3), np.uint8), mask.copy()) for _ in range(12))


def test_changed_masks_of_objects_are_refused(tmp_path: Path) -> None:
    data = make_objects()
    write_data_record(tmp_path, record_data(as_dataset(data)))
    check_same_data(tmp_path, record_data(as_dataset(make_objects())))
    data[7][1][0, 0] ^= 1
    with pytest.raises(DataError, match="had other data: other masks; restore them"):
        check_same_data(tmp_path, record_data(as_dataset(data)))


def test_masks_that_are_random_and_records_without_them_pass(tmp_path: Path) -> None:
    data = make_objects()
    data.is_random = True
    record = record_data(as_dataset(data))
    assert record["masks_sha256"] == ""
    write_data_record(tmp_path, record)
    check_same_data(tmp_path, record_data(as_dataset(data)))
    del record["masks_sha256"]
    write_data_record(tmp_path, record)  # of an earlier version
    check_same_data(tmp_path, record_data(as_dataset(make_objects())))


@pytest.mark.parametrize("nested", [False, True])
def test_files_that_objects_list_are_recorded(tmp_path: Path, nested: bool) -> None:
    data = make_objects()
    paths = [tmp_path / f"{index}.png" for index in range(12)]
    for path in paths:
        path.write_bytes(b"mask")
    data.targets = tuple([path] if nested else str(path) for path in paths)
    write_data_record(tmp_path, record_data(as_dataset(data)))
    check_same_data(tmp_path, record_data(as_dataset(data)))
    paths[5].write_bytes(b"other mask")
    with pytest.raises(DataError, match=r"5\.png is changed"):
        check_same_data(tmp_path, record_data(as_dataset(data)))


def test_tiles_behind_a_vrt_are_told_apart(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", "0 alone")
    scene, tile = data / "training" / "s.tif", tmp_path / "tile.tif"
    scene.rename(tile)
    with rasterio.open(tile) as source, WarpedVRT(source) as virtual:
        rasterio.shutil.copy(virtual, scene.with_suffix(".vrt"), driver="VRT")
    write_data_record(tmp_path, record_data(open_dataset(data, "training")))
    check_same_data(tmp_path, record_data(open_dataset(data, "training")))
    os.utime(tile, ns=(0, 0))
    with pytest.raises(DataError, match=r"tile\.tif is changed"):
        check_same_data(tmp_path, record_data(open_dataset(data, "training")))
    tile.with_name("tile.tif.aux.xml").write_text("<PAMDataset/>")
    with pytest.raises(DataError, match="s is made of other files"):
        check_same_data(tmp_path, record_data(open_dataset(data, "training")))
