"""Scenes from STAC documents and stac-geoparquet."""

import json
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pytest

from ccsegformer.archives.listing import list_scenes
from ccsegformer.archives.reference import SceneAsset, SceneReference
from tests.archives.stac import TIFF, hrefs, item, listed, names_of, refused, save, write_parquet


def test_an_item_and_its_relative_assets(tmp_path: Path) -> None:
    path = save(tmp_path / "x" / "i.json", item("S2A/x:1", {"image": {"href": "../a.tif"}}))
    (scene,) = listed(path)
    assert scene == SceneReference(
        "S2A_x_1", (SceneAsset(str(tmp_path / "a.tif")),), path, "2024-05-06T07:08:09Z"
    )
    span = item("span").to_dict(transform_hrefs=False)
    span["properties"] = {"datetime": None, "start_datetime": "2024-01-01T00:00:00Z"}
    assert listed(save(tmp_path / "s.json", span))[0].datetime == "2024-01-01T00:00:00Z"


def test_collections_of_items(tmp_path: Path) -> None:
    items = [item("a"), item("b", {"image": {"href": "s3://q/b.tif"}})]
    items[0].set_self_href("https://h/items/a.json")
    path = tmp_path / "found.json"
    pystac.ItemCollection(items).save_object(str(path))
    a, b = listed(path)
    assert (a.item, a.assets[0].href) == ("https://h/items/a.json", "https://h/items/a.tif")
    assert (b.item, b.assets[0].href) == (None, "s3://q/b.tif")
    found = json.loads(path.read_text())
    post = {"rel": "next", "href": "https://h/search", "method": "POST"}
    assert "POST" in refused(save(path, found | {"links": [post]}))
    plain = {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": None}]}
    assert "feature 0 is not a STAC item" in refused(save(path, plain))


def test_a_catalogue_is_followed_and_what_is_broken_in_it_is_said(tmp_path: Path) -> None:
    catalog = pystac.Catalog("root", "all")
    extent = pystac.Extent(
        pystac.SpatialExtent([[0, 0, 1, 1]]),
        pystac.TemporalExtent([[datetime(2024, 1, 1, tzinfo=UTC), None]]),
    )
    for year in ("2023", "2024"):
        collection = pystac.Collection(year, "a year", extent)
        catalog.add_child(collection)
        collection.add_items([item(f"{year}a"), item(f"{year}b")])
    catalog.normalize_and_save(str(tmp_path), pystac.CatalogType.SELF_CONTAINED)
    path = tmp_path / "catalog.json"
    assert names_of(path) == ["2023a", "2023b", "2024a", "2024b"]
    assert names_of(tmp_path / "2024" / "collection.json") == ["2024a", "2024b"]
    assert hrefs(listed(path))[0] == [str(tmp_path / "2023" / "2023a" / "2023a.tif")]
    (tmp_path / "2023" / "2023b" / "2023b.json").unlink()
    (tmp_path / "2024" / "collection.json").write_text("[]")
    a, b, broken = listed(path)
    assert a.problem is None and "2023b.json: cannot be read" in str(b.problem)
    assert "collection.json: holds no STAC" in str(broken.problem) and broken.name != b.name


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"type": "Topology"}', '{"type": "FeatureCollection"}'])
def test_json_that_is_no_stac_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(content)
    assert str(path) in refused(path)


def bands(scale: Any = 1e-4, offset: Any = -0.1, nodata: Any = 0) -> dict[str, Any]:
    return {"raster:bands": [{"scale": scale, "offset": offset, "nodata": nodata}]}


@pytest.mark.parametrize(
    ("about", "properties", "expected"),
    [
        (bands(), {}, (1e-4, -0.1, 0)),
        (bands(nodata="nan"), {}, (1e-4, -0.1, float("nan"))),
        (bands(), {"earthsearch:boa_offset_applied": False}, (1e-4, -0.1, 0)),
        (bands(), {"earthsearch:boa_offset_applied": True}, (1e-4, 0, 0)),
        (bands(), {"sentinel:boa_offset_applied": True}, (1e-4, 0, 0)),
        (bands(offset=None), {"earthsearch:boa_offset_applied": True}, (1e-4, None, 0)),
        (
            {"bands": [{"raster:scale": 2, "nodata": -1}, {"raster:scale": 2}], "nodata": -1},
            {},
            (2, None, -1),
        ),
        ({"raster:scale": 2, "raster:offset": 3, "bands": [{"name": "B4"}]}, {}, (2, 3, None)),
        ({"eo:bands": [{"name": "B4"}]}, {}, (None, None, None)),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_scale_offset_and_nodata(
    about: dict[str, Any], properties: dict[str, Any], expected: tuple[Any, ...], suffix: str, tmp_path: Path
) -> None:
    made = item("a", {"B4": {"href": "B4.tif"} | about}, **properties)
    path = tmp_path / f"a.{suffix}"
    if suffix == "json":
        save(path, made)
    else:
        write_parquet(path, [made])
    ((asset,),) = [scene.assets for scene in listed(path)]
    assert str((asset.scale, asset.offset, asset.nodata)) == str(
        tuple(value if value is None else float(value) for value in expected)
    )


def test_bands_that_differ_and_values_that_are_no_numbers_are_problems(tmp_path: Path) -> None:
    differing = {"raster:bands": [{"scale": 1}, {"scale": 2}]}
    for about, words in ((differing, "differ in their scale: 1, 2"), (bands("x"), "scale of 'x'")):
        path = save(tmp_path / "a.json", item("a", {"image": {"href": "a.tif"} | about}))
        (scene,) = listed(path, assets=["image"])
        assert words in str(scene.problem) and str(scene.problem).startswith(f"{path}: item a: ")
        assert not scene.assets


SENTINEL = {
    "red": {"href": "B04.tif", "title": "Red", "roles": ["data", "reflectance"]},
    "nir": {"href": "B08.tif", "roles": ["data", "reflectance"]},
    "visual": {"href": "TCI.tif", "roles": ["visual"]},
    "thumbnail": {"href": "t.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
    "info": {"href": "i.xml", "type": "application/xml", "roles": ["metadata"]},
}


def test_the_asset_that_is_the_image(tmp_path: Path) -> None:
    path = save(tmp_path / "a.json", item("a", SENTINEL))
    said = refused(path)
    assert said.endswith(f"--asset among red (Red), nir ({TIFF}), visual ({TIFF})")
    assert hrefs(listed(path, assets=["nir", "red"])) == [
        [str(tmp_path / "B08.tif"), str(tmp_path / "B04.tif")]
    ]
    for left_out, chosen in ((("nir",), "B04"), (("red", "nir"), "TCI")):
        fewer = {name: about for name, about in SENTINEL.items() if name not in left_out}
        assert hrefs(listed(save(tmp_path / "b.json", item("b", fewer)))) == [
            [str(tmp_path / f"{chosen}.tif")]
        ]
    none = {name: SENTINEL[name] for name in ("thumbnail", "info")}
    assert "no asset is known to be the image" in refused(save(tmp_path / "c.json", item("c", none)))


def test_an_item_without_the_asset_does_not_end_the_listing(tmp_path: Path) -> None:
    items = [item("a", SENTINEL), item("b"), item("c", SENTINEL)]
    path = save(tmp_path / "all.json", pystac.ItemCollection(items))
    a, b, c = listed(path, assets=["red"])
    assert (a.problem, c.problem, b.assets) == (None, None, ())
    assert b.problem == f"{path}: item b: has no asset red; it has image ({TIFF})"
    path = save(tmp_path / "later.json", pystac.ItemCollection(items[1:]))
    b, c = listed(path)
    assert b.problem is None and "choose with --asset" in str(c.problem)


def test_stac_geoparquet_gives_what_its_items_give(tmp_path: Path) -> None:
    items = [item("a", SENTINEL), item("b"), item("c", {"red": {"href": "https://h/r.tif"} | bands()})]
    items[0].set_self_href("https://h/items/a.json")
    path = write_parquet(tmp_path / "all.parquet", items)
    collection = pystac.ItemCollection(items, clone_items=False)
    from_json = listed(save(tmp_path / "all.json", collection), assets=["red"])
    from_parquet = listed(path, assets=["red"])
    assert from_parquet[0].assets[0].href == "https://h/items/B04.tif"
    assert from_parquet[0].datetime == "2024-05-06T07:08:09Z"
    assert "item b: has no asset red; it has image" in str(from_parquet[1].problem)
    assert [from_parquet[0], from_parquet[2]] == [from_json[0], from_json[2]]


def test_other_parquet_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": ["a"], "file": ["a.tif"]}), path)
    assert "no column assets" in refused(path)
    path.write_bytes(b"PAR1 or not")
    assert "not a parquet file" in refused(path)
    whole = write_parquet(tmp_path / "whole.parquet", [item("a")]).read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    path.write_bytes(whole[:4] + bytes(len(whole) - footer - 4) + whole[-footer:])
    assert str(path) in refused(path)


def test_many_rows_take_little_memory(tmp_path: Path) -> None:
    assets = pa.StructArray.from_arrays(
        [pa.array([{"href": "a.tif", "title": "x" * 200}] * 6_000)], names=["image"]
    )
    table = pa.table({"id": [f"S2A_{n:060}" for n in range(6_000)], "assets": assets})
    pq.write_table(table, tmp_path / "many.parquet", row_group_size=2000)
    list_scenes([str(tmp_path / "many.parquet")])  # what is imported and compiled once
    tracemalloc.start()
    count = sum(1 for _ in list_scenes([str(tmp_path / "many.parquet")]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6_000
    assert peak < 3e6  # 4 MB if all are held
