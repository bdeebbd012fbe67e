"""Assets of a scene as one raster: values against plain reads and numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from ccsegformer.archives.reference import SceneAsset, SceneReference
from ccsegformer.archives.stack import gdal_path, opened_as_one
from ccsegformer.archives.worker import wanted_bands
from ccsegformer.errors import DataError
from ccsegformer.labelling.engine import open_engine
from ccsegformer.raster.read import Box, open_raster, read_box
from tests.labelling.test_scene import tiny_model
from tests.served import served


def place(pixel: float, left: float = 0, top: float = 0) -> dict[str, Any]:
    """Describe a grid in UTM whose corner lies some metres from the common one."""
    return {
        "crs": "EPSG:32633",
        "transform": Affine(pixel, 0, 500_000 + left, 0, -pixel, 5_000_000 - top),
    }


def save(path: Path, values: NDArray[Any], **profile: Any) -> SceneAsset:
    """Write pixels (bands, H, W)."""
    count, height, width = values.shape
    about = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", **about, **({"photometric": "MINISBLACK"} | place(10) | profile)) as target:
        target.write(values)
    return SceneAsset(str(path))


def noise(height: int, width: int, dtype: str = "uint16", bands: int = 1, low: int = 1) -> NDArray[Any]:
    return np.random.default_rng(height).integers(low, 250, (bands, height, width)).astype(dtype)


def scene(*assets: SceneAsset) -> SceneReference:
    return SceneReference("s", assets)


def read_all(path: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    with open_raster(path) as source:
        return read_box(source, Box(0, 0, source.height, source.width))


def test_an_asset_without_values_of_its_item_is_opened_itself(tmp_path: Path) -> None:
    asset = save(tmp_path / "a.tif", noise(4, 5))
    assert opened_as_one(scene(asset), tmp_path / "out") == asset.href
    assert not (tmp_path / "out").exists()


def test_sentinel_2_bands_of_three_resolutions(tmp_path: Path) -> None:
    bands = [noise(24 // pixels, 36 // pixels) for pixels in (2, 1, 6)]
    assets = [
        save(tmp_path / f"{size}.tif", values, **place(size), nodata=0)
        for size, values in zip((20, 10, 60), bands, strict=True)
    ]
    assets = [SceneAsset(asset.href, scale=1e-4, offset=-0.1, nodata=0) for asset in assets]
    path = opened_as_one(scene(*assets), tmp_path / "out")
    fine = [np.kron(values[0], np.ones((size, size))) for values, size in zip(bands, (2, 1, 6), strict=True)]
    values, valid = read_all(path)
    assert values.dtype == np.float32 and valid.all()
    np.testing.assert_allclose(values, np.stack(fine) * 1e-4 - 0.1, rtol=1e-6)
    with open_raster(path) as source, rasterio.open(assets[1].href) as finest:
        assert (source.transform, source.crs, source.shape) == (finest.transform, finest.crs, finest.shape)
        assert source.nodatavals == (0, 0, 0)
        part, _ = read_box(source, Box(7, 5, 20, 29), [3, 1])
    np.testing.assert_array_equal(part, values[[2, 0], 7:20, 5:29])


@pytest.mark.parametrize("pixels", [(10, 15), (10, 30), (7, 10)])
def test_no_window_changes_what_is_read(pixels: tuple[int, int], tmp_path: Path) -> None:
    side = 21 * pixels[0] * pixels[1]
    shapes = [side // size // 7 for size in pixels]
    assets = [
        save(tmp_path / f"{size}.tif", noise(n, n), **place(size))
        for size, n in zip(pixels, shapes, strict=True)
    ]
    with open_raster(opened_as_one(scene(*assets), tmp_path)) as source:
        whole, _ = read_box(source, Box(0, 0, source.height, source.width))
        for top, left in np.random.default_rng(0).integers(0, source.height - 5, (20, 2)):
            part, _ = read_box(source, Box(top, left, top + 5, left + 5))
            np.testing.assert_array_equal(part, whole[:, top : top + 5, left : left + 5])


def test_values_of_the_item_replace_those_of_the_file(tmp_path: Path) -> None:
    asset = save(tmp_path / "a.tif", noise(6, 7), nodata=3)
    with rasterio.open(asset.href, "r+") as target:
        target.scales, target.offsets = (5.0,), (7.0,)
    plain, _ = read_all(asset.href)
    stored = noise(6, 7).astype(np.float32)
    kept, _ = read_all(opened_as_one(scene(SceneAsset(asset.href, nodata=9)), tmp_path))
    np.testing.assert_array_equal(kept[0][stored[0] != 9], (stored * 5 + 7)[0][stored[0] != 9])
    none, valid = read_all(opened_as_one(scene(SceneAsset(asset.href, 2.0, 0.0, 3)), tmp_path))
    np.testing.assert_array_equal(none, np.where(stored == 3, 0, stored * 2))
    np.testing.assert_array_equal(valid, stored[0] != 3)
    assert not np.array_equal(plain, none)


def test_alpha_colours_and_nodata_that_is_not_a_number(tmp_path: Path) -> None:
    values = noise(6, 7, "uint8", 4)
    values[3, :2] = 0
    asset = save(tmp_path / "a.tif", values)
    with rasterio.open(asset.href, "r+") as target:
        target.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.alpha]
    read, valid = read_all(opened_as_one(scene(SceneAsset(asset.href, scale=0.5)), tmp_path))
    np.testing.assert_array_equal(valid, values[3] > 0)
    np.testing.assert_array_equal(read, np.where(valid, values[[2, 1, 0]] * 0.5, 0))
    floats = save(tmp_path / "b.tif", noise(6, 7, "float32"))
    path = opened_as_one(scene(SceneAsset(floats.href, nodata=float("nan"))), tmp_path)
    with open_raster(path) as source:
        assert np.isnan(source.nodata)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_mask_of_the_file_still_hides_pixels(stacked: bool, tmp_path: Path) -> None:
    masked = save(tmp_path / "a.tif", noise(6, 8), **place(20))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(masked.href, "r+") as target:
        hidden = np.zeros((6, 8), bool)
        hidden[1, 2:5] = True
        target.write_mask(~hidden)
    fine = save(tmp_path / "b.tif", noise(12, 16))
    assets = [SceneAsset(masked.href, scale=2.0), *([fine] if stacked else [])]
    _, valid = read_all(opened_as_one(scene(*assets), tmp_path))
    np.testing.assert_array_equal(valid, np.kron(~hidden, np.ones((2, 2), bool)) if stacked else ~hidden)


def test_types_are_widened_to_one(tmp_path: Path) -> None:
    for types, common in {("uint8", "uint16"): "uint16", ("uint16", "int16"): "float32"}.items():
        bands = [noise(4, 4, dtype) for dtype in types]
        assets = [save(tmp_path / f"{band.dtype}.tif", band) for band in bands]
        values, _ = read_all(opened_as_one(scene(*assets), tmp_path))
        assert values.dtype == common
        np.testing.assert_array_equal(values, np.concatenate(bands))


def test_the_order_is_the_one_given_whatever_colours_the_files_declare(tmp_path: Path) -> None:
    assets = []
    for color in (ColorInterp.blue, ColorInterp.red, ColorInterp.green):
        assets.append(save(tmp_path / f"{color.name}.tif", np.full((1, 3, 3), color, np.uint8)))
        with rasterio.open(assets[-1].href, "r+") as target:
            target.colorinterp = [color]
        with rasterio.open(assets[-1].href) as source:
            assert source.colorinterp == (color,)
    values, _ = read_all(opened_as_one(scene(*assets), tmp_path))
    assert [int(band[0, 0]) for band in values] == [
        ColorInterp.blue,
        ColorInterp.red,
        ColorInterp.green,
    ]


def test_ground_control_points_are_kept(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, col, 14 + col / 9, 45 - row / 9) for row in (0, 4) for col in (0, 5)]
    asset = save(tmp_path / "a.tif", noise(4, 5), transform=None, crs="EPSG:4326", gcps=points)
    with open_raster(opened_as_one(scene(SceneAsset(asset.href, nodata=0)), tmp_path)) as source:
        found, crs = source.gcps
    assert crs == "EPSG:4326"
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]


def test_the_vrt_is_the_same_bytes_and_not_written_again(tmp_path: Path) -> None:
    asset = SceneAsset(save(tmp_path / "a.tif", noise(4, 5)).href, scale=0.1)
    path = Path(opened_as_one(scene(asset), tmp_path / "out"))
    before = (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
    opened_as_one(scene(asset), tmp_path / "out")
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == before
    opened_as_one(scene(SceneAsset(asset.href, scale=0.2)), tmp_path / "out")
    assert path.read_bytes() != before[0]


def test_a_relative_path_and_one_that_xml_and_shells_mind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = noise(4, 5)
    (tmp_path / "a & <b> 'ü'").mkdir()
    save(tmp_path / "a & <b> 'ü'" / "a.tif", values)
    monkeypatch.chdir(tmp_path)
    path = opened_as_one(scene(SceneAsset("a & <b> 'ü'/a.tif", scale=2.0)), tmp_path / "out")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(read_all(path)[0], values * 2.0)


def test_remote_assets_with_signatures(tmp_path: Path) -> None:
    first, second = noise(4, 4), noise(8, 8)
    save(tmp_path / "a.tif", first, **place(20))
    save(tmp_path / "b.tif", second, **place(10))
    with served(tmp_path) as server:
        assets = [SceneAsset(f"{server.address}/{name}.tif?sig=1&se=2") for name in "ab"]
        values, _ = read_all(opened_as_one(scene(*assets), tmp_path / "out"))
        with pytest.raises(DataError, match=r"c\.tif"):
            opened_as_one(scene(assets[0], SceneAsset(f"{server.address}/c.tif")), tmp_path / "out")
    np.testing.assert_array_equal(values, np.stack([np.kron(first[0], np.ones((2, 2))), second[0]]))


def test_names_that_gdal_knows() -> None:
    assert gdal_path("https://h/a.tif?x") == "/vsicurl/https://h/a.tif?x"
    assert gdal_path("s3://b/a.tif") == "/vsis3/b/a.tif"
    assert gdal_path("gs://b/a.tif") == "/vsigs/b/a.tif"
    assert gdal_path("az://b/a.tif") == "/vsiaz/b/a.tif"
    assert gdal_path("/vsizip/a.zip/a.tif") == "/vsizip/a.zip/a.tif"


def test_layers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    fine = save(tmp_path / "fine.tif", noise(8, 8))
    others = {
        "in EPSG:32634": save(tmp_path / "zone.tif", noise(8, 8), **(place(10) | {"crs": "EPSG:32634"})),
        "2 bands": save(tmp_path / "two.tif", noise(8, 8, bands=2)),
        "columns 1.5": save(tmp_path / "moved.tif", noise(8, 8), **place(10, left=15)),
        "to 12.0": save(tmp_path / "larger.tif", noise(6, 6), **place(20)),
        "same ground": save(
            tmp_path / "turned.tif",
            noise(8, 8),
            transform=place(10)["transform"] @ Affine.rotation(3),
        ),
        "no such file": SceneAsset(str(tmp_path / "none.tif")),
    }
    for words, other in others.items():
        with pytest.raises(DataError, match=words) as error:
            opened_as_one(scene(fine, other), tmp_path / "out")
        assert other.href in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_half_a_pixel_apart_is_placed_where_it_lies(tmp_path: Path) -> None:
    fine = save(tmp_path / "fine.tif", noise(8, 8), nodata=0)
    values = noise(4, 4)
    coarse = save(tmp_path / "coarse.tif", values, **place(20, left=10), nodata=0)
    read, valid = read_all(opened_as_one(scene(fine, coarse), tmp_path))
    np.testing.assert_array_equal(read[1, :, 1:], np.kron(values[0], np.ones((2, 2)))[:, :7])
    assert not read[1, :, 0].any() and valid.all()


def test_a_scene_without_assets_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="s: item x has no asset B9"):
        opened_as_one(SceneReference("s", (), problem="item x has no asset B9"), tmp_path)


def test_the_bands_of_a_training_do_not_reorder_a_stack() -> None:
    model = tiny_model(
        num_channels=3, band_means=[0.0] * 3, band_stds=[1.0] * 3, scene_bands=[3, 2, 1], num_labels=2
    )
    engine = open_engine(model)
    stack, file = scene(*(SceneAsset(name) for name in "abc")), scene(SceneAsset("a"))
    assert wanted_bands(None, stack, engine) == (1, 2, 3)
    assert wanted_bands((2, 1, 3), stack, engine) == (2, 1, 3)
    assert wanted_bands(None, file, engine) is None  # the training's, as `predict_scene` takes them
