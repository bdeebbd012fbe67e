"""`ccsegformer predict` on scenes, from end to end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
from PIL import Image

from ccsegformer.data.labels import Classes, write_classes
from tests.labelling.test_scene import tiny_model

Run = Callable[..., Any]  # see conftest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(num_labels=2).save_pretrained(folder)
    write_classes(Classes(("ground", "water")), folder / "classes.json")
    return folder


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(1, 256, (3, 120, 200), dtype=np.uint8)
    profile = {"driver": "GTiff", "width": 200, "height": 120, "count": 3, "dtype": "uint8"}
    profile |= {"crs": "EPSG:32632", "transform": rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
    with rasterio.open(tmp_path / "scene.tif", "w", **profile) as target:
        target.write(pixels)
    return tmp_path / "scene.tif"


def test_a_scene_becomes_a_map(run: Run, model: Path, scene: Path, tmp_path: Path) -> None:
    options = ["--window", "96", "--overlap", "32", "--confidence"]
    done = run("predict", model, scene, "--output", tmp_path / "map.tif", *options)
    assert done.code == 0, done.err
    assert done.out.strip() == str(tmp_path / "map.tif")
    with rasterio.open(scene) as source, rasterio.open(tmp_path / "map.tif") as found:
        assert (found.crs, found.transform, found.shape) == (source.crs, source.transform, source.shape)
        assert found.count == 2


def test_a_map_as_geoparquet(run: Run, model: Path, scene: Path, tmp_path: Path) -> None:
    output = tmp_path / "regions.parquet"
    done = run("predict", model, scene, "--output", tmp_path / "map.tif", "--polygons", output)
    assert done.code == 0, done.err
    assert done.out.split() == [str(tmp_path / "map.tif"), str(output)]
    found = geopandas.read_parquet(output)
    assert found.crs == "EPSG:32632" and found["area_m2"].sum() == pytest.approx(6000, rel=2e-3)


@pytest.mark.parametrize("name", ["regions.gpkg", "regions.geojson"])
def test_a_map_as_polygons(run: Run, model: Path, scene: Path, tmp_path: Path, name: str) -> None:
    arguments = ["predict", model, scene, "--output", tmp_path / "map.tif", "--polygons", tmp_path / name]
    done = run(*arguments, "--simplify", "0.5")
    assert done.code == 0, done.err
    assert done.out.split() == [str(tmp_path / "map.tif"), str(tmp_path / name)]
    meta, _, shapes, (found, ids, areas) = pyogrio.raw.read(tmp_path / name)
    assert list(meta["fields"]) == ["class", "class_id", "area_m2"]
    assert meta["crs"] == ("EPSG:32632" if name.endswith("gpkg") else "EPSG:4326")
    assert {("ground", 0), ("water", 1)} >= set(zip(found, ids.tolist(), strict=True)) and len(shapes)
    # 60 m x 100 m, larger on the ellipsoid by the square of the projection's scale
    assert areas.sum() == pytest.approx(6000, rel=2e-3)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_what_cannot_be_mapped_is_one_line(run: Run, model: Path, scene: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("no raster")
    before = set(tmp_path.iterdir())
    for arguments, message in [
        ([scene, "--output", scene], "would replace the scene"),
        ([tmp_path / "text.tif", "--output", tmp_path / "map.tif"], "text.tif: not a raster"),
        ([tmp_path / "none.tif", "--output", tmp_path / "map.tif"], "none.tif: no such file"),
        ([scene, scene, "--output", tmp_path / "map.tif"], "name a folder"),
        ([scene, "--output", tmp_path / "map.tif", "--window", "64", "--overlap", "40"], "overlap 40"),
        ([scene, "--output", tmp_path / "map.tif", "--memory", "little"], "memory 'little'"),
        ([scene, "--output", tmp_path / "map.tif", "--memory", "100MB"], "too little"),
        ([scene, "--output", tmp_path / "map.tif", "--polygons", tmp_path / "a.shp"], ".geojson or .parquet"),
        ([scene, "--output", tmp_path / "map.tif", "--polygons", scene / "a.gpkg"], "is not a folder"),
        ([scene, "--output", tmp_path / "maps", "--polygons", tmp_path / "a.gpkg"], "polygons are made of"),
        ([scene, "--output", scene / "map.tif"], "scene.tif is not a folder"),
    ]:
        outcome = run("predict", model, *arguments)
        assert outcome.code == 1, arguments
        assert outcome.err.startswith("ccsegformer: error: ") and message in outcome.err, outcome.err
        assert len(outcome.err.splitlines()) == 1, outcome.err
    assert set(tmp_path.iterdir()) == before


def test_a_folder_with_bad_files_is_done_and_they_are_listed(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.jpg", "c.tif", "z.png"):
        Image.new("RGB", (40, 32)).save(tmp_path / "in" / name)
    for name in ("b.jpg", "c.tif"):
        (tmp_path / "in" / name).write_bytes(b"damaged")
    done = run("predict", model, tmp_path / "in", "--output", tmp_path / "out")
    assert done.code == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("a.png", "a_overlay.png", "z.png", "z_overlay.png")
    }
    errors = [line for line in done.err.splitlines() if line.startswith("ccsegformer: error: ")]
    assert [Path(line.split(": ")[2]).name for line in errors] == ["b.jpg", "c.tif"]
    assert done.err.splitlines()[-2:] == errors
    stopped = run("predict", model, tmp_path / "in", "--output", tmp_path / "other", "--fail-fast")
    assert stopped.code == 1 and "b.jpg" in stopped.err and "c.tif" not in stopped.err
    assert not (tmp_path / "other" / "z.png").exists()
