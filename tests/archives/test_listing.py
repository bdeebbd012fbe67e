"""Scenes from files, lists, STAC documents and stac-geoparquet."""

import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pytest
import rasterio
import stac_geoparquet.arrow
from affine import Affine

from ccsegformer.archives import _stac_inputs
from ccsegformer.archives.listing import list_scenes
from ccsegformer.archives.reference import SceneAsset, SceneReference
from ccsegformer.errors import DataError

TIFF = "image/tiff; application=geotiff"


def raster(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"driver": "GTiff", "count": 1, "height": 2, "width": 2, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", **about, transform=Affine(1, 0, 5, 0, -1, 5)) as target:
        target.write(np.ones((1, 2, 2), np.uint8))
    return path


def item(name: str, assets: dict[str, dict[str, Any]] | None = None, **properties: Any) -> pystac.Item:
    made = pystac.Item(
        name,
        {"type": "Point", "coordinates": [14, 45]},
        [14, 45, 14, 45],
        datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
        properties,
    )
    for key, about in (assets or {"image": {"href": f"{name}.tif"}}).items():
        made.add_asset(key, pystac.Asset.from_dict({"type": TIFF} | about))
    return made


def save(path: Path, document: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = document if isinstance(document, dict) else document.to_dict(transform_hrefs=False)
    path.write_text(json.dumps(content))
    return str(path)


def listed(*inputs: Any, **options: Any) -> list[SceneReference]:
    return list(list_scenes([str(given) for given in inputs], **options))


def names_of(*inputs: Any, **options: Any) -> list[str]:
    return [scene.name for scene in listed(*inputs, **options)]


def hrefs(scenes: list[SceneReference]) -> list[list[str]]:
    return [[asset.href for asset in scene.assets] for scene in scenes]


def refused(*inputs: Any, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        listed(*inputs, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


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


def write_parquet(path: Path, items: list[pystac.Item], **options: Any) -> Path:
    dicts = [made.to_dict(transform_hrefs=False) for made in items]
    stac_geoparquet.arrow.to_parquet(stac_geoparquet.arrow.parse_stac_items_to_arrow(dicts), path, **options)
    return path


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


class Served(ThreadingHTTPServer):
    """Serves a folder, `/page?n=N` as a page of search results, and errors for the next `bad` requests."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(ServedFile, directory=str(folder)))
        self.address, self.bad = f"http://127.0.0.1:{self.server_port}", 0


class ServedFile(SimpleHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        if self.server.bad:
            self.server.bad -= 1
            self.send_error(503)
        elif self.path.startswith("/page"):
            self.send_page(int(self.path[-1]))
        elif "Range" in self.headers:
            self.send_part()
        else:
            super().do_GET()

    def send_page(self, number: int) -> None:
        link = {"rel": "next", "href": f"{self.server.address}/page?n={number + 1}"}
        found = [item(f"p{number}").to_dict(transform_hrefs=False)]
        page = {"type": "FeatureCollection", "features": found, "links": [link] * (number < 3)}
        content = json.dumps(page).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_part(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        first, last = (int(first), int(last)) if first else (len(content) - int(last), len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    server = Served(tmp_path)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("query", ["", "?sig=1&se=2"])
def test_over_http(query: str, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stac_inputs, "PAUSES", (0.0, 0.0))
    save(tmp_path / "x" / "i.json", item("i"))
    write_parquet(tmp_path / "x" / "p.parquet", [item("p")])
    (tmp_path / "x" / "l.txt").write_text("i.json\nl.tif\n/top.tif\n")
    served.bad = 2
    scenes = listed(f"{served.address}/x/i.json{query}")
    assert hrefs(scenes) == [[f"{served.address}/x/i.tif"]]
    assert hrefs(listed(f"{served.address}/x/p.parquet{query}")) == [[f"{served.address}/x/p.tif"]]
    listing = hrefs(listed(f"{served.address}/x/l.txt{query}"))
    assert listing == [[f"{served.address}/{name}"] for name in ("x/i.tif", "x/l.tif", "top.tif")]
    assert "404" in refused(f"{served.address}/x/none.json{query}")
    assert "404" in refused(f"{served.address}/x/none.parquet{query}")
    served.bad = 3
    assert "503" in refused(f"{served.address}/x/i.json{query}")


def test_pages_of_an_api(served: Served, tmp_path: Path) -> None:
    assert names_of(f"{served.address}/page?n=1") == ["p1", "p2", "p3"]
    links = [{"rel": "items", "href": "./page?n=2"}, {"rel": "self", "href": "collection"}]
    collection = {"type": "Collection", "id": "c", "stac_version": "1.0.0", "links": links}
    save(tmp_path / "collection", collection)
    assert names_of(f"{served.address}/collection") == ["p2", "p3"]


def test_scenes_are_listed_as_they_are_needed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain: Callable[[str], bytes] = _stac_inputs.read_address
    monkeypatch.setattr(_stac_inputs, "read_address", lambda address: read.append(address) or plain(address))
    scenes = list_scenes([f"{served.address}/page?n=1"])
    assert not read
    assert next(scenes).name == "p1" and len(read) == 1
    assert next(scenes).name == "p2" and len(read) == 2
