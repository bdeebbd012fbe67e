"""Scenes listed over HTTP and from an object store."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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

SCALE = {"raster:bands": [{"scale": 0.5}]}


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
