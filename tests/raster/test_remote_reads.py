"""Reading over a network: several windows at once, the same pixels, and an end to waiting."""

import time
from http.server import SimpleHTTPRequestHandler

import numpy as np
import pytest
import rasterio
from rasterio.env import getenv

from ccsegformer.errors import DataError
from ccsegformer.labelling.windows import spans
from ccsegformer.raster import _ahead, source_files
from ccsegformer.raster.read import Box, open_raster, read_box
from ccsegformer.raster.source_files import gdal_options
from tests.served import Handler, served


def windows_of(height, width, window=64, overlap=32):
    rows, columns = spans(height, window, overlap), spans(width, window, overlap)
    return [Box(row.start, column.start, row.stop, column.stop) for row in rows for column in columns]


@pytest.mark.parametrize("limit", [0, 64 * 64, 64 * 100, 10**9])
def test_strips_hold_every_window_once_in_order(limit):
    windows = windows_of(160, 230)
    strips = list(_ahead._strips(windows, limit))
    assert [window for strip in strips for window in strip] == windows
    for strip in strips:
        assert len({(window.top, window.bottom) for window in strip}) == 1
        assert len(strip) == 1 or strip[0].height * (strip[-1].right - strip[0].left) <= limit
    assert len(strips) == {0: 28, 64 * 64: 28, 64 * 100: 16, 10**9: 4}[limit]


def write_scene(path, dtype):
    data = np.random.default_rng(0).integers(0, 255, (3, 150, 230)).astype(dtype)
    data[:, 40:90, 30:160] = 0
    profile = {"driver": "GTiff", "height": 150, "width": 230, "count": 3, "dtype": dtype, "nodata": 0}
    profile |= {"tiled": True, "blockxsize": 48, "blockysize": 48}
    with rasterio.open(path, "w", crs="EPSG:32632", **profile, transform=rasterio.Affine.scale(2)) as target:
        target.write(data)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("strip", [0, 60_000, 10**9])
def test_windows_are_the_same_in_strips(dtype, strip, tmp_path, monkeypatch):
    path, boxes = write_scene(tmp_path / "a.tif", dtype), windows_of(150, 230)
    with _ahead.read_ahead(path, None, boxes) as windows:
        expected = list(windows)
    monkeypatch.setattr(_ahead, "reads_network", lambda _: True)
    monkeypatch.setattr(_ahead, "AHEAD", strip)
    monkeypatch.setattr(_ahead, "PIECE", 32)
    with _ahead.read_ahead(path, None, boxes) as windows:
        found = list(windows)
    assert len(found) == len(boxes)
    for (image, valid), (wanted, there) in zip(found, expected, strict=True):
        assert image.dtype == wanted.dtype
        np.testing.assert_array_equal(image, wanted)
        np.testing.assert_array_equal(valid, there)


def test_the_environment_decides_before_the_defaults(monkeypatch):
    with gdal_options("/vsicurl/http://host/a.tif"):
        assert getenv()["GDAL_HTTP_LOW_SPEED_TIME"] == 30
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "5")
    with gdal_options("/vsicurl/http://host/a.tif"):
        assert "GDAL_HTTP_LOW_SPEED_TIME" not in getenv()


@pytest.fixture
def server(tmp_path):
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "height": 512, "width": 512, "count": 1, "dtype": "uint8"}
    profile |= {"tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(path, "w", crs="EPSG:32632", transform=rasterio.Affine.scale(2), **profile) as target:
        target.write(np.random.default_rng(0).integers(0, 255, (1, 512, 512), dtype=np.uint8))
    with served(tmp_path) as server:
        yield server


def test_a_server_that_stops_halfway_is_an_error_in_bounded_time(server, monkeypatch):
    monkeypatch.setitem(source_files.GDAL_OPTIONS, "GDAL_HTTP_MAX_RETRY", 0)
    monkeypatch.setitem(source_files.REMOTE_OPTIONS, "GDAL_HTTP_LOW_SPEED_TIME", 1)
    monkeypatch.setitem(source_files.REMOTE_OPTIONS, "GDAL_HTTP_LOW_SPEED_LIMIT", 10**6)
    monkeypatch.setenv("GDAL_NUM_THREADS", "4")  # GDAL would give zeros instead of the error
    path = f"/vsicurl/{server.address}/a.tif"
    begun = time.monotonic()
    with open_raster(path) as source:
        server.faults["*"] = ["stall", "half"]
        with pytest.raises(DataError, match="rows 400-409, columns 400-409 cannot be read") as caught:
            read_box(source, Box(400, 400, 410, 410))
    assert "\n" not in str(caught.value) and time.monotonic() - begun < 10 and server.failed


def test_a_server_that_fails_for_the_header_is_named(server, monkeypatch):
    monkeypatch.setitem(source_files.GDAL_OPTIONS, "GDAL_HTTP_MAX_RETRY", 0)
    monkeypatch.setattr(Handler, "do_HEAD", SimpleHTTPRequestHandler.do_HEAD)
    server.faults["*"] = [503]
    with pytest.raises(DataError, match=r"a\.tif: not a raster that .*: its server failed, or [^\n]*$"):
        open_raster(f"/vsicurl/{server.address}/a.tif")
