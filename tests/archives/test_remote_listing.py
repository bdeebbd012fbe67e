"""Scenes listed over HTTP and from an object store."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from ccsegformer.archives import _stac_inputs
from ccsegformer.archives.listing import list_scenes
from ccsegformer.archives.stack import opened_as_one
from ccsegformer.archives.store import open_store
from ccsegformer.raster.read import Box, open_raster, read_box
from tests.archives.stac import hrefs, item, listed, names_of, refused, save, write_parquet
from tests.served import Handler, Server, served

SCALE = {"raster:bands": [{"scale": 0.5}]}


class PagesHandler(Handler):
    """Also serves `/page?n=N` as a page of search results."""

    def do_GET(self) -> None:
        if self.path.startswith("/page"):
            self.send_page(int(self.path[-1]))
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


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with served(tmp_path, PagesHandler) as server:
        yield server


@pytest.mark.parametrize("query", ["", "?sig=1&se=2"])
def test_over_http(query: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stac_inputs, "PAUSES", (0.0, 0.0))
    save(tmp_path / "x" / "i.json", item("i"))
    write_parquet(tmp_path / "x" / "p.parquet", [item("p")])
    (tmp_path / "x" / "l.txt").write_text("i.json\nl.tif\n/top.tif\n")
    server.faults["*"] = [503, 503, 200]
    scenes = listed(f"{server.address}/x/i.json{query}")
    assert hrefs(scenes) == [[f"{server.address}/x/i.tif"]]
    assert hrefs(listed(f"{server.address}/x/p.parquet{query}")) == [[f"{server.address}/x/p.tif"]]
    listing = hrefs(listed(f"{server.address}/x/l.txt{query}"))
    assert listing == [[f"{server.address}/{name}"] for name in ("x/i.tif", "x/l.tif", "top.tif")]
    assert "404" in refused(f"{server.address}/x/none.json{query}")
    assert "404" in refused(f"{server.address}/x/none.parquet{query}")
    server.faults["*"] = [503]
    assert "503" in refused(f"{server.address}/x/i.json{query}")


def test_pages_of_an_api(server: Server, tmp_path: Path) -> None:
    assert names_of(f"{server.address}/page?n=1") == ["p1", "p2", "p3"]
    links = [{"rel": "items", "href": "./page?n=2"}, {"rel": "self", "href": "collection"}]
    collection = {"type": "Collection", "id": "c", "stac_version": "1.0.0", "links": links}
    save(tmp_path / "collection", collection)
    assert names_of(f"{server.address}/collection") == ["p2", "p3"]


def test_scenes_are_listed_as_they_are_needed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain: Callable[[str], bytes] = _stac_inputs.read_address
    monkeypatch.setattr(_stac_inputs, "read_address", lambda address: read.append(address) or plain(address))
    scenes = list_scenes([f"{server.address}/page?n=1"])
    assert not read
    assert next(scenes).name == "p1" and len(read) == 1
    assert next(scenes).name == "p2" and len(read) == 2


def test_in_an_object_store(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    for name, value in {
        "AWS_S3_ENDPOINT": endpoint,
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }.items():
        monkeypatch.setenv(name, value)
    store, place = open_store(f"s3://{bucket}/in"), f"s3://{bucket}/in"
    about = {"driver": "GTiff", "count": 1, "height": 2, "width": 2, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", **about, transform=Affine(1, 0, 5, 0, -1, 5)) as target:
        target.write(np.full((1, 2, 2), 7, np.uint8))
    store.put_file("a.tif", tmp_path / "a.tif")
    store.put_file(
        "i.json", Path(save(tmp_path / "i.json", item("i", {"image": {"href": "./a.tif"} | SCALE})))
    )
    store.put_file(
        "p.parquet", write_parquet(tmp_path / "p.parquet", [item("p", {"x": {"href": "../a.tif"}})])
    )
    store.put("l.txt", b"i.json\na.tif\n")
    assert hrefs(listed(f"{place}/p.parquet")) == [[f"s3://{bucket}/a.tif"]]
    assert names_of(f"{place}/l.txt") == ["i", "a"]
    (scene,) = listed(f"{place}/i.json")
    assert scene.item == f"{place}/i.json" and scene.assets[0].href == f"{place}/a.tif"
    with open_raster(opened_as_one(scene, tmp_path / "out")) as source:
        np.testing.assert_array_equal(read_box(source, Box(0, 0, 2, 2))[0], np.full((1, 2, 2), 3.5))
    for name in ("none.json", "none.parquet"):
        assert f"{place}/{name}: " in refused(f"{place}/{name}")
