"""Scenes from files, folders, globs and text lists."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from ccsegformer.archives.reference import SceneAsset, SceneReference
from tests.archives.stac import hrefs, item, listed, names_of, refused, save


def raster(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"driver": "GTiff", "count": 1, "height": 2, "width": 2, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", **about, transform=Affine(1, 0, 5, 0, -1, 5)) as target:
        target.write(np.ones((1, 2, 2), np.uint8))
    return path


def test_files_folders_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.tif", "a.v1.tif", "a.v1_mask.tif", "deep/c.tif", "deep/er/d.tif", "deep/.hidden.tif"):
        raster(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.md").write_text("no image")
    monkeypatch.chdir(tmp_path)
    assert listed("in/b.tif") == [SceneReference("b", (SceneAsset(str(tmp_path / "in" / "b.tif")),))]
    assert names_of("in") == ["a.v1", "b"]
    assert names_of("in/**/*") == names_of("in/**/*.tif") == ["a.v1", "b", "c", "d"]
    assert names_of("in/deep/er", "in", "in/b.tif", tmp_path / "in" / "b.tif") == ["d", "a.v1", "b"]
    assert names_of((tmp_path / "in" / "b.tif").as_uri()) == ["b"]


def test_addresses_are_left_to_gdal() -> None:
    given = [
        *("https://h/p/a.tif?sig=x.y", "s3://bucket/b.tif", "/vsizip/z.zip/c.tif", "NETCDF:d.nc:red"),
        *("NETCDF:d.nc:blue", "s3://bucket/e", "https://h/f.JP2"),
    ]
    scenes = listed(*given)
    assert hrefs(scenes) == [[address] for address in given]
    assert [scene.name for scene in scenes] == [
        "a",
        "b",
        "c",
        "NETCDF_d.nc_red",
        "NETCDF_d.nc_blue",
        "e",
        "f",
    ]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("2023/x/B04.tif", "2023/y/B04.tif", "2024/x/B04.tif", "other.tif"):
        raster(tmp_path / name)
    assert names_of(tmp_path / "**" / "*.tif") == ["2023_x_B04", "2023_y_B04", "2024_x_B04", "other"]
    assert names_of("https://h/1/a.tif?z/q.tif", "https://h/2/a.tif") == ["1_a", "2_a"]


def test_two_scenes_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = raster(tmp_path / "a.tif"), raster(tmp_path / "a.tiff")
    said = refused(first, second)
    assert str(first) in said and str(second) in said and "named a;" in said
    documents = [save(tmp_path / f"{n}/i.json", item("same", {"d": {"href": f"{n}.tif"}})) for n in (1, 2)]
    said = refused(*documents)
    assert documents[0] in said and documents[1] in said and "named same;" in said
    assert names_of(documents[0], documents[0]) == ["same"]


def test_a_text_list(tmp_path: Path) -> None:
    raster(tmp_path / "lists" / "a.tif")
    raster(tmp_path / "more" / "b.tif")
    save(tmp_path / "lists" / "i.json", item("i"))
    lines = [
        *("\ufeff# two scenes", "", "a.tif", "  ../more  ", "../more/b.t?f", "missing.tif", "i.json"),
        *("https://h/c 1.tif", "none.json", "broken.json"),
    ]
    path = tmp_path / "lists" / "scenes.txt"
    path.write_bytes("\r\n".join(lines).encode())
    (tmp_path / "lists" / "broken.json").write_text("{")
    scenes = listed(path)
    assert [scene.name for scene in scenes[:5]] == ["a", "b", "missing", "i", "c 1"]
    assert scenes[2].assets[0].href == str(tmp_path / "lists" / "missing.tif")
    assert [scene.problem is None for scene in scenes] == [True] * 5 + [False] * 2
    assert "none.json: cannot be read: No such file" in str(scenes[5].problem)
    assert "broken.json: not JSON" in str(scenes[6].problem)


def test_inputs_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9.tif")
    (tmp_path / "nested.txt").write_text("empty.txt")
    (tmp_path / "folder").mkdir()
    a = raster(tmp_path / "a.tif")
    assert "no scenes" in refused(tmp_path / "empty.txt")
    assert "UTF-8" in refused(tmp_path / "latin.txt")
    assert "within a list" in refused(tmp_path / "nested.txt")
    assert "no images in this folder" in refused(tmp_path / "folder")
    assert "no such file" in refused(a, tmp_path / "b.tif")
    assert "matches no images" in refused(tmp_path / "b*.tif")
    assert "no STAC items" in refused(a, assets=["red"])
