"""Pixels without data, in every way that GDAL has: alpha, masks, nodata, values that are not finite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.vrt import WarpedVRT

from ccsegformer.raster.dataset import Scenes
from ccsegformer.raster.random_windows import band_statistics
from ccsegformer.raster.read import Box, alpha_note, image_bands, open_raster, pixel_dtype, read_box

HEIGHT, WIDTH = 12, 16
EMPTY = np.zeros((HEIGHT, WIDTH), bool)
EMPTY[2:5, 3:9] = True
GRID = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)}
DTYPES = ("uint8", "uint16", "int16", "float32")


def values(bands: int, dtype: str = "uint8") -> NDArray[np.generic]:
    return np.random.default_rng(0).integers(1, 200, (bands, HEIGHT, WIDTH)).astype(dtype)


def write(path: Path, pixels: NDArray[Any], colors: list[ColorInterp] | None = None, **profile: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"driver": "GTiff", "count": len(pixels), "height": HEIGHT, "width": WIDTH}
    options |= {"dtype": pixels.dtype, "photometric": "MINISBLACK", **GRID}
    with rasterio.open(path, "w", **(options | profile)) as target:
        if colors:
            target.colorinterp = colors
        target.write(pixels)
    return path


def add_mask(path: Path, empty: NDArray[np.bool_], internal: bool) -> Path:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as target:
        target.write_mask(~empty)
    assert Path(f"{path}.msk").exists() != internal
    return path


def with_alpha(path: Path, pixels: NDArray[Any], **profile: Any) -> Path:
    """Write pixels and an alpha band of 0 or the dtype's usual opaque value."""
    opaque = 255 if pixels.dtype == np.uint8 else 1 if pixels.dtype == np.float32 else 32767
    alpha = np.where(EMPTY, 0, opaque).astype(pixels.dtype)[None]
    colors = [ColorInterp.undefined] * len(pixels) + [ColorInterp.alpha]
    return write(path, np.concatenate([pixels, alpha]), colors, **profile)


def empty_pixels(path: Path, bands: list[int] | None = None) -> NDArray[np.bool_]:
    with open_raster(path) as source:
        return ~read_box(source, Box(0, 0, HEIGHT, WIDTH), bands)[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 10])
def test_alpha_of_any_number_and_type_of_bands(bands: int, dtype: str, tmp_path: Path) -> None:
    path = with_alpha(tmp_path / "a.tif", values(bands, dtype))
    with open_raster(path) as source:
        assert image_bands(source) == list(range(1, bands + 1)) and alpha_note(source, path) is None
    np.testing.assert_array_equal(empty_pixels(path), EMPTY)
    np.testing.assert_array_equal(empty_pixels(path, [1]), EMPTY)  # one band of it


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6])
def test_the_alpha_that_a_warp_adds(bands: int, dtype: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", values(bands, dtype))
    shifted = GRID["transform"] @ Affine.translation(-3, 0)  # type: ignore[operator]
    grid = {"transform": shifted, "height": HEIGHT, "width": WIDTH}
    with rasterio.open(path) as source, WarpedVRT(source, crs=GRID["crs"], add_alpha=True, **grid) as warped:
        rasterio.shutil.copy(warped, tmp_path / "b.tif", driver="GTiff")
    expected = np.zeros_like(EMPTY)
    expected[:, :3] = True
    np.testing.assert_array_equal(empty_pixels(tmp_path / "b.tif"), expected)


def nodata_beside(mark: Callable[[Path, NDArray[Any], int], Path]) -> Callable[[Path], Path]:
    """Write a file whose last row has the nodata value, and whose empty pixels `mark` marks."""

    def make(path: Path) -> Path:
        pixels = values(3)
        pixels[:, -1] = 0
        return mark(path, pixels, 0)

    return make


WAYS = {
    "alpha": nodata_beside(lambda path, pixels, nodata: with_alpha(path, pixels, nodata=nodata)),
    "internal mask": nodata_beside(
        lambda path, pixels, nodata: add_mask(write(path, pixels, nodata=nodata), EMPTY, internal=True)
    ),
    "mask beside": nodata_beside(
        lambda path, pixels, nodata: add_mask(write(path, pixels, nodata=nodata), EMPTY, internal=False)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_nodata_and_masks_both_count(way: str, tmp_path: Path) -> None:
    expected = EMPTY.copy()
    expected[-1] = True
    np.testing.assert_array_equal(empty_pixels(WAYS[way](tmp_path / "a.tif")), expected)


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_and_mask_both_count(dtype: str, internal: bool, tmp_path: Path) -> None:
    masked = np.zeros_like(EMPTY)
    masked[:, 0] = True
    path = add_mask(with_alpha(tmp_path / "a.tif", values(4, dtype)), masked, internal)
    np.testing.assert_array_equal(empty_pixels(path), EMPTY | masked)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_alpha_mask_nodata_and_values_that_are_not_finite_count_together(
    value: float, tmp_path: Path
) -> None:
    pixels = values(2, "float32")
    pixels[:, 0, :5], pixels[1, 1, 1] = -9999, value
    masked = np.zeros_like(EMPTY)
    masked[7, 7] = True
    path = add_mask(with_alpha(tmp_path / "a.tif", pixels, nodata=-9999), masked, internal=True)
    expected = EMPTY | masked
    expected[0, :5] = expected[1, 1] = True
    np.testing.assert_array_equal(empty_pixels(path), expected)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        *[("int16", -9999), ("int16", -32768), ("float32", -9999), ("float32", -3.4028234663852886e38)],
        *[("float32", np.nan), ("float32", 1e20), ("float32", -0.1)],
    ],
)
def test_one_band_of_a_nodata_value_that_is_no_colour_is_enough(
    dtype: str, nodata: float, tmp_path: Path
) -> None:
    pixels = values(2, dtype)
    pixels[1, EMPTY] = nodata
    np.testing.assert_array_equal(empty_pixels(write(tmp_path / "a.tif", pixels, nodata=nodata)), EMPTY)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("uint8", 255), ("uint16", 65535), ("int16", 0)])
def test_black_or_white_in_one_band_is_a_colour(dtype: str, nodata: int, tmp_path: Path) -> None:
    pixels = values(3, dtype)
    pixels[:, EMPTY] = nodata
    pixels[0, 8:, :] = nodata
    np.testing.assert_array_equal(empty_pixels(write(tmp_path / "a.tif", pixels, nodata=nodata)), EMPTY)


def test_a_band_without_nodata_value_does_not_fill_the_others(tmp_path: Path) -> None:
    pixels = values(4)
    pixels[:3, EMPTY] = 0
    write(tmp_path / "a.tif", pixels)
    rasterio.shutil.copy(tmp_path / "a.tif", tmp_path / "a.vrt", driver="VRT")
    text = (tmp_path / "a.vrt").read_text()
    for band in (1, 2, 3):
        start = text.index(f'band="{band}"')
        place = text.index(">", start) + 1
        text = f"{text[:place]}<NoDataValue>0</NoDataValue>{text[place:]}"
    (tmp_path / "a.vrt").write_text(text)
    np.testing.assert_array_equal(empty_pixels(tmp_path / "a.vrt"), EMPTY)


def test_nodata_values_of_all_bands_together(tmp_path: Path) -> None:
    pixels = values(3)
    pixels[:, EMPTY] = np.array([1, 2, 3], np.uint8)[:, None]
    pixels[0, 0, :] = 1
    path = write(tmp_path / "a.tif", pixels)
    with rasterio.open(path, "r+") as target:
        target.update_tags(NODATA_VALUES="1 2 3")
    np.testing.assert_array_equal(empty_pixels(path), EMPTY & (pixels == pixels[:, 2:3, 3:4]).all(axis=0))


def test_statistics_and_training_see_the_same_pixels(tmp_path: Path) -> None:
    pixels = values(4, "uint16") + np.uint16(1000)
    pixels[:, EMPTY] = 0
    with_alpha(tmp_path / "training" / "a.tif", pixels)
    write(tmp_path / "training" / "a_mask.tif", np.zeros((1, HEIGHT, WIDTH), np.uint8))
    scenes = Scenes(tmp_path)
    np.testing.assert_array_equal(scenes[0]["mask"] == 65535, EMPTY)
    means, stds = band_statistics(scenes)
    np.testing.assert_allclose(means, pixels[:, ~EMPTY].mean(axis=1))
    np.testing.assert_allclose(stds, pixels[:, ~EMPTY].std(axis=1))


@pytest.mark.parametrize("count", [2, 4, 5])
def test_an_image_band_declared_alpha_is_noticed_and_can_be_read(count: int, tmp_path: Path) -> None:
    pixels = values(count)
    pixels[-1, 0] = 0
    colors = [ColorInterp.undefined] * (count - 1) + [ColorInterp.alpha]
    path = write(tmp_path / "a.tif", pixels, colors)
    with open_raster(path) as source:
        note = alpha_note(source, path)
        read, valid = read_box(source, Box(0, 0, HEIGHT, WIDTH), range(1, count + 1))
    assert note and f"band {count} is declared alpha" in note
    np.testing.assert_array_equal(read, pixels)
    assert valid.all()


def test_training_says_that_an_image_band_is_declared_alpha(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "training" / "a.tif", values(4), photometric="RGB", alpha="YES")
    write(tmp_path / "training" / "a_mask.tif", np.zeros((1, HEIGHT, WIDTH), np.uint8))
    Scenes(tmp_path)
    said = capsys.readouterr().err
    assert f"{path}: band 4 is declared alpha" in said and "to use it: --bands 1,2,3,4" in said


@pytest.mark.parametrize("order", [(3, 2, 1), (2, 3, 1), (3, 2, 1, 4), (4, 3, 2, 1)])
def test_red_green_and_blue_come_first(order: tuple[int, ...], tmp_path: Path) -> None:
    """`order` gives the place of each band of a file in the image."""
    names = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined]
    pixels = values(len(order))
    stored = np.stack([pixels[place - 1] for place in order])
    with open_raster(write(tmp_path / "a.tif", stored, [names[place - 1] for place in order])) as source:
        read, _ = read_box(source, Box(0, 0, HEIGHT, WIDTH))
    np.testing.assert_array_equal(read, pixels)


def test_scale_and_offset_are_applied(tmp_path: Path) -> None:
    pixels = values(2, "uint16")
    pixels[:, EMPTY] = 0
    path = write(tmp_path / "a.tif", pixels, nodata=0)
    with rasterio.open(path, "r+") as target:
        target.scales, target.offsets = (0.0001, 2.0), (-0.1, 5.0)
    with open_raster(path) as source:
        read, valid = read_box(source, Box(0, 0, HEIGHT, WIDTH))
        assert pixel_dtype(source) == read.dtype == np.float32
    np.testing.assert_array_equal(~valid, EMPTY)
    expected = np.stack([pixels[0] * 0.0001 - 0.1, pixels[1] * 2.0 + 5.0]).astype(np.float32)
    np.testing.assert_array_equal(read, np.where(EMPTY, 0, expected))


@pytest.mark.parametrize("alpha", [False, True])
def test_holes_of_a_mosaic_are_empty_with_an_alpha_band_alone(alpha: bool, tmp_path: Path) -> None:
    """`gdalbuildvrt -addalpha` writes a band that is 255 where a tile is."""
    write(tmp_path / "t.tif", values(3))
    source = '<SourceFilename relativeToVRT="1">t.tif</SourceFilename><SourceBand>{}</SourceBand>'
    size = 'yOff="0" xSize="16" ySize="12"'
    place = f'<SrcRect xOff="0" {size}/><DstRect xOff="{{}}" {size}/>'
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}">'
        + "".join(f"<SimpleSource>{source.format(band)}{place.format(x)}</SimpleSource>" for x in (0, 20))
        + "</VRTRasterBand>"
        for band in (1, 2, 3)
    )
    if alpha:
        scaled = "<ScaleOffset>255</ScaleOffset><ScaleRatio>0</ScaleRatio>"
        bands += '<VRTRasterBand dataType="Byte" band="4"><ColorInterp>Alpha</ColorInterp>' + "".join(
            f"<ComplexSource>{source.format(1)}{place.format(x)}{scaled}</ComplexSource>" for x in (0, 20)
        )
        bands += "</VRTRasterBand>"
    path = tmp_path / "v.vrt"
    path.write_text(f'<VRTDataset rasterXSize="36" rasterYSize="12">{bands}</VRTDataset>')
    with open_raster(path) as mosaic:
        _, valid = read_box(mosaic, Box(0, 0, 12, 36))
    hole = np.zeros((12, 36), bool)
    hole[:, 16:20] = alpha
    np.testing.assert_array_equal(~valid, hole)
