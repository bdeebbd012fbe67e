"""Boxes of rasters that are complete, partly empty, damaged or remote."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.env import get_gdal_config

from ccsegformer.errors import DataError
from ccsegformer.raster import source_files
from ccsegformer.raster.read import PIXEL_DTYPES, Box, image_bands, open_raster, read_box
from ccsegformer.raster.source_files import gdal_options, is_remote
from tests.served import Server, served

UTM = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)}


def write(path: Path, values: NDArray[np.generic], **profile: object) -> Path:
    """Write a GeoTIFF of pixels (bands, H, W)."""
    bands, height, width = values.shape
    shape = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", **shape, **(UTM | profile)) as target:
        target.write(values)
    return path


def numbers(bands: int, height: int, width: int, dtype: str = "uint8") -> NDArray[np.generic]:
    return np.random.default_rng(0).integers(1, 200, (bands, height, width)).astype(dtype)


@pytest.mark.parametrize("dtype", PIXEL_DTYPES)
def test_a_box_has_the_raster_s_dtype(dtype: str, tmp_path: Path) -> None:
    values = numbers(4, 20, 30, dtype)
    with open_raster(write(tmp_path / "a.tif", values, photometric="MINISBLACK")) as source:
        read, valid = read_box(source, Box(3, 5, 11, 25))
    assert read.dtype == dtype and valid.all()
    np.testing.assert_array_equal(read, values[:, 3:11, 5:25])


@pytest.mark.parametrize(
    "box", [Box(-4, -7, 6, 8), Box(15, 20, 40, 50), Box(-5, -5, 30, 40), Box(0, 3, 20, 4)]
)
def test_pixels_outside_the_raster_have_no_data(box: Box, tmp_path: Path) -> None:
    values = numbers(2, 20, 30)
    wide = np.pad(values, ((0, 0), (50, 50), (50, 50)))
    inside = np.pad(np.ones((20, 30), bool), 50)
    rows, columns = slice(50 + box.top, 50 + box.bottom), slice(50 + box.left, 50 + box.right)
    with open_raster(write(tmp_path / "a.tif", values)) as source:
        read, valid = read_box(source, box)
        np.testing.assert_array_equal(read, wide[:, rows, columns])
        np.testing.assert_array_equal(valid, inside[rows, columns])
        read, valid = read_box(source, Box(100, 100, 110, 120))
    assert read.shape == (2, 10, 20) and not read.any() and not valid.any()


def test_a_pixel_is_empty_if_all_bands_are_nodata(tmp_path: Path) -> None:
    values = numbers(3, 8, 9, "int16")
    values[:, 2, 3] = 0
    values[1, 5, 5] = 0  # one band of three
    with open_raster(write(tmp_path / "a.tif", values, nodata=0)) as source:
        read, valid = read_box(source, Box(0, 0, 8, 9))
    assert (~valid).nonzero() == (2, 3)
    assert read[:, 2, 3].tolist() == [0, 0, 0] and read[1, 5, 5] == 0 and read[0, 5, 5]


def test_a_pixel_is_empty_if_a_band_is_nan_or_infinite(tmp_path: Path) -> None:
    values = numbers(3, 8, 9, "float32")
    values[0, 1, 1], values[2, 3, 4] = np.nan, np.inf
    with open_raster(write(tmp_path / "a.tif", values)) as source:
        read, valid = read_box(source, Box(0, 0, 8, 9))
    assert np.argwhere(~valid).tolist() == [[1, 1], [3, 4]]
    assert not read[:, ~valid].any() and np.isfinite(read).all()


def test_alpha_is_no_image_band_but_empties_pixels(tmp_path: Path) -> None:
    values = numbers(4, 8, 9)
    values[3] = 255
    values[3, 4, 2:5] = 0
    path = write(tmp_path / "a.tif", values, photometric="RGB", alpha="YES")
    with open_raster(path) as source:
        assert source.colorinterp[3] == ColorInterp.alpha and image_bands(source) == [1, 2, 3]
        read, valid = read_box(source, Box(0, 0, 8, 9))
    assert read.shape == (3, 8, 9)
    assert np.argwhere(~valid).tolist() == [[4, 2], [4, 3], [4, 4]]


@pytest.mark.parametrize("nodata", [0, 255])
def test_alpha_and_nodata_both_count(nodata: int, tmp_path: Path) -> None:
    values = numbers(4, 8, 9)
    values[3] = 255
    values[3, 4, 2:5] = 0
    values[:3, 6, 7] = nodata
    values[1, 7, 7] = nodata
    with open_raster(
        write(tmp_path / "a.tif", values, photometric="RGB", alpha="YES", nodata=nodata)
    ) as source:
        _, valid = read_box(source, Box(0, 0, 8, 9))
    assert np.argwhere(~valid).tolist() == [[4, 2], [4, 3], [4, 4], [6, 7]]


def test_a_mask_band_empties_pixels(tmp_path: Path) -> None:
    path, mask = write(tmp_path / "a.tif", numbers(3, 8, 9)), np.full((8, 9), 255, np.uint8)
    mask[:, 0] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        target.write_mask(mask)
    with open_raster(path) as source:
        _, valid = read_box(source, Box(1, 0, 5, 4))
    np.testing.assert_array_equal(valid, mask[1:5, :4] > 0)


def test_an_unusable_file_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("not a raster")
    write(tmp_path / "double.tif", numbers(1, 4, 4, "float64"))
    for name, message in (
        ("missing.tif", "no such file"),
        ("text.tif", "not a raster that can be read: "),
        ("double.tif", "values of float64; convert them to one of uint8, uint16, int16, float32"),
    ):
        with pytest.raises(DataError) as caught, open_raster(tmp_path / name):
            pass
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
        assert "\n" not in str(caught.value)


def test_a_truncated_file_names_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", numbers(1, 600, 300), tiled=True, blockxsize=64, blockysize=64)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with open_raster(path) as source:
        assert read_box(source, Box(0, 0, 64, 64))[1].all()
        with pytest.raises(DataError) as caught:
            read_box(source, Box(500, 10, 600, 90))
    assert str(caught.value).startswith(f"{path}: rows 500-599, columns 10-89 cannot be read: ")
    assert "\n" not in str(caught.value)


def test_damaged_files_never_show_a_traceback(tmp_path: Path) -> None:
    content = write(tmp_path / "a.tif", numbers(3, 40, 50), compress="deflate").read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for number in range(200):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content) if number % 2 else 400, 6):
            damaged[place] = generator.integers(256)
        path = tmp_path / f"{number}.tif"
        path.write_bytes(damaged)
        try:
            with open_raster(path) as source:
                read_box(source, Box(0, 0, min(source.height, 200), min(source.width, 200)))
        except DataError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            refused += 1
    assert 20 < refused < 200


def test_gdal_caches_64_mb() -> None:
    with gdal_options("a.tif"):
        assert get_gdal_config("GDAL_CACHEMAX") == 64 * 2**20  # in bytes


def test_remote_paths() -> None:
    remote = (
        "/vsicurl/https://example.org/a.tif",
        "s3://bucket/a.tif",
        "https://example.org/a.tif",
        "/vsis3/a",
    )
    assert all(map(is_remote, remote))
    assert not is_remote("scenes/a.tif") and not is_remote(Path("/data/a.tif"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    values = np.random.default_rng(1).integers(0, 256, (1, 512, 512), dtype=np.uint8)
    write(tmp_path / "a.tif", values, tiled=True, blockxsize=64, blockysize=64)
    with served(tmp_path) as server:
        yield server


@pytest.mark.parametrize("box", [Box(400, 0, 500, 512), Box(400, 400, 500, 500)])  # one range, and several
def test_a_server_error_is_retried(
    box: Box, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(source_files.GDAL_OPTIONS, "GDAL_HTTP_RETRY_DELAY", 0.001)
    with open_raster(tmp_path / "a.tif") as source:
        expected, _ = read_box(source, box)
    with open_raster(f"/vsicurl/{server.address}/a.tif") as source:
        server.faults["*"] = [503, 503, 200]
        read, valid = read_box(source, box)
        np.testing.assert_array_equal(read, expected)
        assert valid.all() and server.failed == 2


def test_a_lasting_server_error_is_a_one_line_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(source_files.GDAL_OPTIONS, "GDAL_HTTP_RETRY_DELAY", 0.001)
    path = f"/vsicurl/{server.address}/a.tif"
    with open_raster(path) as source:
        server.faults["*"] = [503]
        with pytest.raises(DataError) as caught:
            read_box(source, Box(400, 400, 500, 500))
    assert str(caught.value).startswith(f"{path}: rows 400-499, columns 400-499 cannot be read: ")
    assert server.failed > source_files.GDAL_OPTIONS["GDAL_HTTP_MAX_RETRY"]
