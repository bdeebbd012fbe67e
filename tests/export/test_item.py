"""The STAC item of an exported file: valid, and enough for predict."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.transform import Affine
from stac_model.schema import MLModelProperties

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.export import export, write_model_item
from ccsegformer.labelling.loading import load_engine
from ccsegformer.labelling.model_item import (
    band_names_of,
    classes_of_item,
    model_file_of,
    preprocessing_of_item,
    read_model_item,
)
from ccsegformer.labelling.preprocess import Preprocessing
from tests.cli.conftest import Run, run
from tests.export.test_export import TINY, tiny

assert run  # a fixture

CLASSES = Classes(("crop land", "crop_land", "道"), ((1, 2, 3), (4, 5, 6), (250, 8, 9)), 200)
MEANS, STDS = [1012.3, 900.1, 871.7, 2900.9], [310.2, 290.7, 300.3, 812.6]
WINDOW = ("--window", 96, "--overlap", 16)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the item of a model of four bands with its own statistics."""
    path = tmp_path_factory.mktemp("exported") / "4 bands.onnx"
    model = tiny(**TINY, num_channels=4, band_means=MEANS, band_stds=STDS, attention="none")
    export(model, CLASSES, path, "onnx")
    return write_model_item(model, CLASSES, path, "onnx")


def write_scene(path: Path, descriptions: tuple[str, ...] = (), bands: int = 4) -> Path:
    values = np.random.default_rng(0).integers(1, 4000, (bands, 90, 100), np.uint16)
    about: dict[str, Any] = {
        "count": bands,
        "height": 90,
        "width": 100,
        "dtype": "uint16",
        "crs": "EPSG:32632",
    }
    with rasterio.open(
        path, "w", driver="GTiff", transform=Affine(10, 0, 5e5, 0, -10, 5e6), **about
    ) as target:
        target.write(values)
        if descriptions:
            target.descriptions = descriptions
    return path


def read(path: Path) -> Any:
    with rasterio.open(path) as source:
        return source.read(1)


def test_it_is_valid(exported: Path) -> None:
    content = json.loads(exported.read_text())
    JsonSchemaSTACValidator().validate_core(content, pystac.STACObjectType.ITEM, content["stac_version"])
    assert pystac.Item.from_dict(content).id == "4 bands"
    found = MLModelProperties.model_validate(content["properties"])
    assert found.name == "model_4_bands" and found.framework == "ONNX"
    assert found.total_parameters == sum(
        each.numel() for each in tiny(**TINY, num_channels=4, attention="none").parameters()
    )
    names = [each["name"] for each in content["properties"]["mlm:output"][0]["classification:classes"]]
    assert names == ["crop_land_0", "crop_land_1", "class"]
    [asset] = content["assets"].values()
    assert asset["href"] == "./4 bands.onnx" and asset["mlm:artifact_type"] == "onnx"
    assert [band["name"] for band in asset["bands"]] == content["properties"]["mlm:input"][0]["bands"]
    assert {"mlm", "file"} == {uri.split("/")[3] for uri in content["stac_extensions"]}


def test_it_is_the_same_again(exported: Path) -> None:
    before = exported.read_bytes()
    model = tiny(**TINY, num_channels=4, band_means=MEANS, band_stds=STDS, attention="none")
    assert write_model_item(model, CLASSES, exported.with_suffix(".onnx"), "onnx").read_bytes() == before


def test_own_statistics_and_classes_come_back(exported: Path) -> None:
    by_item, classes = load_engine(exported)
    by_file, own = load_engine(exported.with_suffix(".onnx"))
    assert classes == own == CLASSES
    assert by_item.preprocessing == by_file.preprocessing
    assert by_item.preprocessing.statistics == (tuple(MEANS), tuple(STDS))


def test_predict_writes_the_same_labels(exported: Path, run: Run, tmp_path: Path) -> None:
    scene, listing = write_scene(tmp_path / "scene.tif"), tmp_path / "classes.json"
    write_classes(CLASSES, listing)
    for name, model in (("a", exported), ("b", exported.with_suffix(".onnx"))):
        done = run(
            "predict", model, scene, "--output", tmp_path / f"{name}.tif", *WINDOW, "--classes", listing
        )
        assert done.code == 0, done.err
    labels = read(tmp_path / "a.tif")
    assert len(np.unique(labels)) > 1 and (labels == read(tmp_path / "b.tif")).all()


def test_an_items_own_statistics_decide(exported: Path, tmp_path: Path) -> None:
    content = json.loads(exported.read_text())
    content["properties"]["mlm:input"][0]["value_scaling"] = [{"type": "scale", "value": 10000}]
    content["assets"]["model"]["href"] = exported.with_suffix(".onnx").as_uri()
    (tmp_path / "item.json").write_text(json.dumps(content))
    found = load_engine(tmp_path / "item.json")[0].preprocessing.statistics
    assert found == ((0.0,) * 4, (10000.0,) * 4)


def test_bands_are_found_by_name(exported: Path, run: Run, tmp_path: Path) -> None:
    names = ("cloud", "band_4", "band_3", "band_2", "band_1")
    scene = write_scene(tmp_path / "scene.tif", names, bands=5)
    for name, options in (("a", ()), ("b", ("--bands", "5,4,3,2")), ("c", ("--bands", "1,2,3,4"))):
        assert (
            run("predict", exported, scene, "--output", tmp_path / f"{name}.tif", *WINDOW, *options).code == 0
        )
    assert (read(tmp_path / "a.tif") == read(tmp_path / "b.tif")).all()
    assert (read(tmp_path / "a.tif") != read(tmp_path / "c.tif")).any()
    unnamed = write_scene(tmp_path / "unnamed.tif", bands=5)
    done = run("predict", exported, unnamed, "--output", tmp_path / "d.tif")
    assert done.code == 1
    assert "5 bands for a model of 4, band_1, band_2, band_3, band_4: choose them" in done.err


def test_a_file_that_was_replaced_is_refused(exported: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_bytes(exported.read_bytes())
    (tmp_path / "4 bands.onnx").write_bytes(b"another file")
    done = run("predict", tmp_path / "mine.json", tmp_path / "scene.tif", "--output", tmp_path / "map.tif")
    assert done.code == 1 and "is not the file that" in done.err


def test_a_model_of_8_bit_colours_stays_one(tmp_path: Path) -> None:
    model = tiny(**TINY, attention="none")
    (tmp_path / "m.pt2").write_bytes(b"weights")
    path = write_model_item(model, CLASSES, tmp_path / "m.pt2", "pt2")
    item = read_model_item(path)
    assert model_file_of(item, path) == tmp_path / "m.pt2"
    assert band_names_of(item, path) == ("red", "green", "blue")
    assert preprocessing_of_item(item, path, 3) == Preprocessing()
    assert classes_of_item(item, path, None) == CLASSES
    assert json.loads(path.read_text())["assets"]["model"]["mlm:artifact_type"] == "torch.export.save"
