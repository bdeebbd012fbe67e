"""Masks of scenes at the antimeridian, in any turn of the Earth and any CRS."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import Resampling, reproject

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import DataError
from ccsegformer.raster.dataset import Scenes
from tests.raster.test_dataset import whole, write

DEGREES = Affine(0.01, 0, 179.5, 0, -0.01, -16)
"""Of a scene from 179.5 to 180.5 degrees."""
SIDE = 100
UTM = Affine(105.0, 0, 815_700, 0, -105.0, 8_228_700)
"""Of a scene from about 179.95 to 180.05 degrees in UTM 60 S, EPSG:32760."""


def patches() -> NDArray[np.uint8]:
    ids = np.random.default_rng(1).integers(0, 3, (1, SIDE // 10, SIDE // 10)).astype(np.uint8)
    return ids.repeat(10, 1).repeat(10, 2)


def scene(root: Path, crs: str, transform: Affine) -> None:
    values = np.random.default_rng(0).integers(1, 200, (3, SIDE, SIDE)).astype(np.uint8)
    write(root / "training" / "a.tif", values, crs=crs, transform=transform)
    write_classes(Classes(("field", "wood", "water")), root / "classes.json")


def moved(degrees: float, scale: float = 1.0) -> Affine:
    return Affine(0.01 * scale, 0, 179.5 + degrees, 0, -0.01 * scale, -16)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4269", "EPSG:4167"])
@pytest.mark.parametrize("turn", [0, -360, 360])
def test_a_mask_in_another_turn(turn: int, crs: str, tmp_path: Path) -> None:
    scene(tmp_path, "EPSG:4326", DEGREES)
    write(tmp_path / "training" / "a_mask.tif", patches(), crs=crs, transform=moved(turn))
    np.testing.assert_array_equal(whole(Scenes(tmp_path)), patches()[0])


@pytest.mark.parametrize("start", [0, 180])
def test_a_mask_of_the_whole_earth_has_both_sides(start: int, tmp_path: Path) -> None:
    """The scene's halves are at the two ends of a mask from -180 to 180, or together in one of 0 to 360."""
    ids = np.random.default_rng(2).integers(0, 3, (1, 20, 720)).astype(np.uint8)
    transform = Affine(0.5, 0, -start, 0, -0.5, -12)
    write(tmp_path / "training" / "a_mask.tif", ids, crs="EPSG:4326", transform=transform)
    scene(tmp_path, "EPSG:4326", DEGREES)
    expected = np.empty((SIDE, SIDE), np.uint8)
    for row in range(SIDE):
        for column in range(SIDE):
            x, y = 179.5 + 0.01 * (column + 0.5) + start, -16 - 0.01 * (row + 0.5)
            expected[row, column] = ids[0, int((-12 - y) / 0.5), int(x % 360 / 0.5)]
    np.testing.assert_array_equal(whole(Scenes(tmp_path)), expected)


def test_one_side_alone_is_labelled_where_it_lies(tmp_path: Path) -> None:
    scene(tmp_path, "EPSG:4326", DEGREES)
    far = Affine(0.01, 0, -180.0, 0, -0.01, -16)
    write(tmp_path / "training" / "a_mask.tif", patches()[:, :, 50:], crs="EPSG:4326", transform=far)
    found = whole(Scenes(tmp_path))
    np.testing.assert_array_equal(found[:, 50:], patches()[0, :, 50:])
    assert (found[:, :50] == 255).all()


@pytest.mark.parametrize(("scene_crs", "mask_crs"), [("UTM", "degrees"), ("degrees", "UTM")])
@pytest.mark.parametrize("turn", [0, -360])
def test_degrees_and_utm(scene_crs: str, mask_crs: str, turn: int, tmp_path: Path) -> None:
    """Compare with plain warps of the mask to the scene in a CRS without the antimeridian nearby."""
    places = {"UTM": ("EPSG:32760", UTM), "degrees": ("EPSG:4326", Affine(0.001, 0, 179.95, 0, -0.001, -16))}
    _, near = places["degrees"]
    turned = Affine(near.a, 0, near.c + turn, 0, near.e, near.f)
    places["degrees"] = ("EPSG:4326", turned)
    scene(tmp_path, *places[scene_crs])
    crs, transform = places[mask_crs]
    write(tmp_path / "training" / "a_mask.tif", patches(), crs=crs, transform=transform)
    found = whole(Scenes(tmp_path))
    central = "+proj=longlat +datum=WGS84 +pm=179"  # its longitudes are about 1
    shifted = Affine(near.a, 0, near.c - 179, 0, near.e, near.f)
    plain = {"UTM": ("EPSG:32760", UTM), "degrees": (central, shifted)}
    expected = np.full((SIDE, SIDE), 255, np.uint8)
    reproject(
        patches()[0],
        expected,
        src_crs=plain[mask_crs][0],
        src_transform=plain[mask_crs][1],
        dst_crs=plain[scene_crs][0],
        dst_transform=plain[scene_crs][1],
        resampling=Resampling.nearest,
        init_dest_nodata=False,
    )
    assert (expected != 255).mean() > 0.3
    assert (found == expected).mean() > 0.98  # at the patches' edges either is the nearest
    assert (found[expected != 255] != 255).mean() > 0.98


def test_a_mask_elsewhere_is_refused(tmp_path: Path) -> None:
    scene(tmp_path, "EPSG:4326", DEGREES)
    write(tmp_path / "training" / "a_mask.tif", patches(), crs="EPSG:4326", transform=moved(-180))
    with pytest.raises(DataError, match=r"a_mask\.tif: does not overlap .*a\.tif"):
        Scenes(tmp_path)
