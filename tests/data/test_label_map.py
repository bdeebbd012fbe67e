"""Raw ids of masks become classes by the map of classes.json, in every kind of data set."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from PIL import Image

from ccsegformer.data.labels import Classes, read_classes, write_classes
from ccsegformer.data.objects import as_dataset
from ccsegformer.errors import DataError
from ccsegformer.sources import open_dataset

RAW = np.array([[0, 7, 8, 11], [255, 11, 7, 7]], dtype=np.uint8)
MAPPED = [[255, 0, 0, 1], [255, 1, 0, 0]]
LISTING = {
    "names": ["road", "building"],
    "ignore_index": 255,
    "map": {"0": "ignore", "7": "road", "8": 0, "11": "building"},
}
PIXELS = np.zeros((2, 4, 3), np.uint8)


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def write_listing(folder: Path, listing: dict[str, Any] = LISTING) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.json").write_text(json.dumps(listing))
    return folder / "classes.json"


def write_folder(root: Path, raw: np.ndarray = RAW) -> None:
    for kind, array in (("images", PIXELS), ("annotations", raw)):
        (root / kind / "training").mkdir(parents=True)
        Image.fromarray(array).save(root / kind / "training" / "a.png")


def write_parquet(root: Path, raw: np.ndarray = RAW) -> None:
    row = {}
    for column, array in (("image", PIXELS), ("annotation", raw)):
        Image.fromarray(array).save(file := io.BytesIO(), "png")
        row[column] = [{"bytes": file.getvalue(), "path": f"{column}.png"}]
    (root / "data").mkdir(parents=True)
    pq.write_table(pa.table(row), root / "data" / "train-00000-of-00001.parquet")


def write_scene(root: Path, raw: np.ndarray = RAW, nodata: int | None = None) -> None:
    (root / "training").mkdir(parents=True)
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(1, 0, 500000, 0, -1, 5000000)}
    for name, bands in (("a", np.moveaxis(PIXELS, 2, 0)), ("a_mask", raw[None])):
        shape = {"count": len(bands), "height": 2, "width": 4, "dtype": bands.dtype}
        path = root / "training" / f"{name}.tif"
        with rasterio.open(path, "w", nodata=nodata if "mask" in name else None, **shape, **place) as out:
            out.write(bands)


WRITERS = {"folder": write_folder, "parquet": write_parquet, "scene": write_scene}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_map_holds_in_every_kind_of_data_set(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path / "data")
    write_listing(tmp_path / "data")
    data = open_dataset(tmp_path / "data", "training")
    assert data[0]["mask"].tolist() == MAPPED
    assert data[0]["mask"].dtype == torch.uint8
    assert data.classes.names == ("road", "building")


@pytest.mark.parametrize("kind", WRITERS)
def test_another_listing_can_be_named(tmp_path: Path, kind: str) -> None:
    WRITERS[kind](tmp_path / "data")
    write_listing(tmp_path / "data", {"names": ["a", "b"], "ignore_index": 255})
    listing = write_listing(tmp_path / "other")
    data = open_dataset(f"{tmp_path / 'data'}?classes={listing}", "training")
    assert data[0]["mask"].tolist() == MAPPED


@pytest.mark.parametrize("kind", WRITERS)
def test_an_id_outside_the_map_is_refused(tmp_path: Path, kind: str) -> None:
    raw = RAW.copy()
    raw[1, 2] = 9
    WRITERS[kind](tmp_path / "data", raw)
    write_listing(tmp_path / "data")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "data", "training")[0]
    assert "id 9 at row 1, column 2 is not in the map of the classes, which has 0, 7, 8, 11, 255" in str(
        caught.value
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
def test_objects_are_mapped_too(tmp_path: Path, dtype: Any) -> None:
    classes = read_classes(write_listing(tmp_path))
    assert as_dataset([(PIXELS, RAW.astype(dtype))], classes)[0]["mask"].tolist() == MAPPED
    for wrong in (1, 256, 10**6):
        if wrong <= np.iinfo(np.uint8).max or dtype != np.uint8:
            raw = RAW.astype(np.int64)
            raw[0, 3] = wrong
            with pytest.raises(DataError, match=f"id {wrong} at row 0, column 3 is not in the map"):
                as_dataset([(PIXELS, raw)], classes)
    with pytest.raises(DataError, match="id -1 at row 0, column 0"):
        as_dataset([(PIXELS, np.full((2, 4), -1))], classes)


def test_nodata_in_the_map_is_a_class_and_other_nodata_is_ignored(tmp_path: Path) -> None:
    for nodata, expected in ((7, MAPPED), (11, MAPPED), (255, MAPPED)):
        write_scene(tmp_path / str(nodata), nodata=nodata)
        write_listing(tmp_path / str(nodata))
        assert open_dataset(tmp_path / str(nodata), "training")[0]["mask"].tolist() == expected


def test_polygons_take_raw_ids(tmp_path: Path) -> None:
    write_scene(tmp_path / "data")
    (tmp_path / "data" / "training" / "a_mask.tif").unlink()
    write_listing(tmp_path / "data")
    squares = []
    for column, label in enumerate([11, 8, 7, 0]):
        left, top = 500000 + column, 5000000
        ring = [[left, top], [left + 1, top], [left + 1, top - 1], [left, top - 1], [left, top]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        squares.append({"type": "Feature", "properties": {"class_id": label}, "geometry": geometry})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    content = {"type": "FeatureCollection", "crs": crs, "features": squares}
    (tmp_path / "data" / "training" / "a.geojson").write_text(json.dumps(content))
    mask = open_dataset(tmp_path / "data", "training")[0]["mask"]
    assert mask.tolist() == [[1, 0, 0, 255], [0, 0, 0, 0]]


def test_reduced_labels_are_those_of_segformers_processor(tmp_path: Path) -> None:
    from transformers import SegformerImageProcessor

    listing = {"names": ["a", "b", "c"], "ignore_index": 255, "reduce_labels": True}
    classes = read_classes(write_listing(tmp_path, listing))
    raw = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)
    processor = SegformerImageProcessor(do_resize=False, do_reduce_labels=True)
    expected = processor(images=np.zeros((2, 3, 3), np.uint8), segmentation_maps=raw, return_tensors="pt")
    found = as_dataset([(np.zeros((2, 3, 3), np.uint8), raw)], classes)[0]["mask"]
    assert found.tolist() == expected["labels"][0].tolist()


def test_maps_are_written_and_read_back(tmp_path: Path) -> None:
    classes = read_classes(write_listing(tmp_path))
    assert classes == Classes(
        ("road", "building"), ignore_index=255, label_map=((0, 255), (7, 0), (8, 0), (11, 1))
    )
    write_classes(classes, tmp_path / "again.json")
    assert read_classes(tmp_path / "again.json") == classes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"map": []}, "'map' must give the class of each id"),
        ({"map": {}}, "'map' must give the class of each id"),
        ({"map": {"seven": 0}}, "not 'seven'"),
        ({"map": {"-1": 0}}, "not '-1'"),
        ({"map": {"7": 0, "07": 1}}, "map: id 7 is given twice"),
        ({"map": {"70000": 0}}, "map: 70000 is not an id of a mask, 0 to 65535"),
        ({"map": {"7": 2}}, "map: 7 becomes 2, but the classes are 0-1 (ignore_index 255)"),
        ({"map": {"7": -1}}, "map: 7 becomes -1"),
        ({"map": {"7": True}}, "the class True, which does not exist"),
        ({"map": {"7": None}}, "the class None, which does not exist"),
        ({"map": {"7": "raod"}}, "'raod', which does not exist; did you mean 'road'?"),
        ({"map": {"7": "ignored"}}, "did you mean 'ignore'?"),
        ({"map": {"7": "zebra"}}, "use a class's number or name, or 'ignore'"),
        ({"map": {"0": 0, "255": 1}}, "map: 255 becomes class 1, but it is the ignore_index; choose another"),
        ({"reduce_labels": "yes"}, "'reduce_labels' must be true or false, not 'yes'"),
        ({"reduce_labels": True}, "give one of it and 'map'"),
    ],
)
def test_wrong_maps_are_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_listing(tmp_path, LISTING | change)
    with pytest.raises(DataError) as caught:
        read_classes(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_order_of_a_map_does_not_matter(tmp_path: Path) -> None:
    classes = Classes(("a", "b"), label_map=((7, 1), (0, 255), (3, 0)))
    write_classes(classes, tmp_path / "classes.json")  # a resumed run compares the two
    assert read_classes(tmp_path / "classes.json") == classes
    with pytest.raises(DataError, match="id 7 is given twice"):
        Classes(("a", "b"), label_map=((7, 1), (7, 0)))


def test_0_and_255_become_two_classes(tmp_path: Path) -> None:
    listing = {"names": ["no", "yes"], "ignore_index": 254, "map": {"0": "no", "255": "yes"}}
    classes = read_classes(write_listing(tmp_path, listing))
    raw = np.array([[0, 255], [255, 0]], np.uint8)
    sample = as_dataset([(np.zeros((2, 2, 3), np.uint8), raw)], classes)[0]
    assert sample["mask"].tolist() == [[0, 1], [1, 0]]
