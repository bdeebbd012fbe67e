"""What tells whether a source has changed, and reading scenes where maps are written."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from ccsegformer import predict_scene
from ccsegformer.archives.states import state_of
from ccsegformer.archives.store import open_store
from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.raster import mapping, remote
from ccsegformer.raster.read import open_raster, read_box
from ccsegformer.raster.source_files import gdal_options, reads_network

CLASSES = Classes(("dark", "light"))


def write_scene(path, seed=0, side=96):
    data = np.random.default_rng(seed).integers(1, 255, (3, side, side), dtype=np.uint8)
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8"}
    profile |= {"crs": "EPSG:32632", "transform": rasterio.Affine(1, 0, 4e5, 0, -1, 5e6)}
    with rasterio.open(path, "w", **profile) as target:
        target.write(data)
    return path


def brightness(pixels):
    mean = pixels.mean(1, keepdim=True)
    return torch.cat([-mean, mean], 1)


def test_a_local_file_changes_with_its_size_or_time(tmp_path):
    path = write_scene(tmp_path / "a.tif")
    state = state_of(str(path))
    assert state == state_of(str(path)) and list(state) == ["files"]
    write_scene(path, seed=1)
    assert state_of(str(path)) != state


def test_a_vrt_changes_with_its_parts(tmp_path):
    path = write_scene(tmp_path / "a.tif")
    with rasterio.open(path) as source, rasterio.vrt.WarpedVRT(source) as warped:
        rasterio.shutil.copy(warped, tmp_path / "a.vrt", driver="VRT")
    state = state_of(str(tmp_path / "a.vrt"))
    assert len(state["files"]) == 2
    write_scene(path, seed=1)
    assert state_of(str(tmp_path / "a.vrt")) != state


def test_a_missing_file_is_a_one_line_error(tmp_path):
    with pytest.raises(DataError, match=r"b\.tif: no such file"):
        state_of(str(tmp_path / "b.tif"))


@pytest.mark.parametrize("prefix", ["s3://", "/vsis3/"])
def test_an_object_changes_with_its_content(bucket, prefix):
    store = open_store(f"s3://{bucket}")
    address = f"{prefix}{bucket}/in/Zürich #1.tif"
    store.put("in/Zürich #1.tif", b"a")
    state = state_of(address)
    assert list(state) == ["etag"] and state == state_of(address)
    store.put("in/Zürich #1.tif", b"b")
    assert state_of(address) != state
    store.delete("in/Zürich #1.tif")
    with pytest.raises(DataError, match=r"Zürich #1\.tif: does not exist") as caught:
        state_of(address)
    assert "\n" not in str(caught.value)


class Server(ThreadingHTTPServer):
    """Answers every request with a status and headers, or not at all."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.headers, self.status, self.refuse_head, self.wait, self.paths = {}, 200, False, 0, []

    def address(self, path="a.tif"):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(403 if self.server.refuse_head else self.server.status)

    def do_GET(self):
        self.answer(self.server.status)

    def answer(self, status):
        self.server.paths.append(self.path)
        time.sleep(self.server.wait)
        self.send_response(status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


MODIFIED = "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"ETag": '"1"', "Content-Length": "5"}, {"etag": '"1"'}),
        ({"etag": '"1"'}, {"etag": '"1"'}),
        (
            {"ETag": 'W/"1"', "Content-Length": "5", "Last-Modified": MODIFIED},
            {"size": "5", "modified": MODIFIED},
        ),
        ({"Content-Length": "5"}, {"size": "5"}),
        ({}, {}),
    ],
)
def test_an_address_changes_with_what_its_server_says(server, headers, expected):
    server.headers = headers
    assert state_of(server.address()) == state_of(f"/vsicurl/{server.address()}") == expected


def test_a_signed_address_that_refuses_head_is_asked_for_a_byte(server):
    server.headers, server.refuse_head = {"Content-Range": "bytes 0-0/777", "Content-Length": "1"}, True
    assert state_of(server.address("a%20b/ä.tif?sig=x%2By&se=1")) == {"size": "777"}
    assert server.paths == ["/a%20b/%C3%A4.tif?sig=x%2By&se=1"] * 2


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "does not exist"), (410, "does not exist"), (500, "answers 500"), (503, "answers 503")],
)
def test_a_server_that_fails_is_a_one_line_error(server, status, message):
    server.status = status
    with pytest.raises(DataError, match=f"{server.address()}: .*{message}") as caught:
        state_of(server.address())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_file_that_only_gdal_may_read_has_no_state(server, status):
    server.status = status
    assert state_of(server.address()) == {}


def test_a_server_that_is_silent_or_away_ends_in_one_line(server, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT", 0.05)
    server.wait = 0.3
    with pytest.raises(DataError, match=r"does not answer: .*timed out"):
        state_of(server.address())
    with pytest.raises(DataError, match=r"does not answer: .*refused"):
        state_of("http://127.0.0.1:9/a.tif")


@pytest.mark.parametrize(
    "path", ["ftp://host/a.tif", "/vsiadls/fs/a.tif", "/vsizip//vsicurl/http://h/a.zip/b"]
)
def test_what_cannot_be_asked_has_no_state(path):
    assert state_of(path) == {}


@pytest.mark.parametrize("prefix", ["s3://", "/vsis3/"])
def test_a_scene_is_read_where_maps_are_written(bucket, tmp_path, prefix):
    local = write_scene(tmp_path / "scene.tif")
    store = open_store(f"s3://{bucket}/in")
    store.put_file("scene.tif", local)
    address = f"{prefix}{bucket}/in/scene.tif"
    predict_scene(brightness, address, tmp_path / "far.tif", classes=CLASSES, window=64)
    predict_scene(brightness, local, tmp_path / "near.tif", classes=CLASSES, window=64)
    assert (tmp_path / "far.tif").read_bytes() == (tmp_path / "near.tif").read_bytes()


def test_a_vrt_of_objects_is_read(bucket, tmp_path):
    local = write_scene(tmp_path / "scene.tif")
    open_store(f"s3://{bucket}").put_file("scene.tif", local)
    path = tmp_path / "scene.vrt"
    with rasterio.open(local) as source:
        rasterio.shutil.copy(source, path, driver="VRT")
        expected = source.read()
    text = path.read_text().replace(
        'relativeToVRT="1">scene.tif', f'relativeToVRT="0">/vsis3/{bucket}/scene.tif'
    )
    path.write_text(text)
    local.unlink()
    assert reads_network(path) and not reads_network(tmp_path / "none.vrt")
    with open_raster(path) as source:
        box = mapping.Box(0, 0, 96, 96)
        np.testing.assert_array_equal(read_box(source, box)[0], expected)


def test_a_remote_scene_that_changed_begins_anew(bucket, tmp_path, monkeypatch):
    store = open_store(f"s3://{bucket}")
    output, address = tmp_path / "map.tif", f"s3://{bucket}/scene.tif"
    jobs = []
    begin = mapping.journal.begin
    monkeypatch.setattr(mapping.journal, "begin", lambda folder, job: (jobs.append(job), begin(folder, job)))
    for seed, begun in [(0, 1), (0, 1), (1, 2)]:
        store.put_file("scene.tif", write_scene(tmp_path / "scene.tif", seed))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(mapping, "write_cog", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            mapping.write_map(
                address,
                output,
                grid=[[mapping.MapCell(mapping.Box(0, 0, 96, 96), mapping.Box(0, 0, 96, 96))]],
                compute=lambda tile: [tile.image[0]],
                classes=CLASSES,
                format=mapping.MapFormat("uint8", 255, False),
                job={},
            )
        assert len(jobs) == begun


def test_gdal_follows_the_endpoint_of_the_other_tools(monkeypatch):
    monkeypatch.delenv("AWS_S3_ENDPOINT", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for endpoint, host, https in [
        ("http://localhost:9000/", "localhost:9000", "NO"),
        ("https://minio.example.org", "minio.example.org", "YES"),
    ]:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with gdal_options(Path("a.tif")):
            options = rasterio.env.getenv()
        assert (options["AWS_S3_ENDPOINT"], options["AWS_HTTPS"]) == (host, https)
    monkeypatch.setenv("AWS_S3_ENDPOINT", "other")
    assert remote.s3_options() == {}
