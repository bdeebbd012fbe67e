"""Scenes with masks in any grid or polygons in any CRS."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import Resampling, reproject

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import DataError
from ccsegformer.raster import dataset as module
from ccsegformer.raster.dataset import DEFAULT_CLASSES, TILE, Scenes
from ccsegformer.sources import open_dataset

CRS = "EPSG:32633"
GRID = Affine(2.0, 0, 500_000, 0, -2.0, 5_000_000)
CLASSES = Classes(("field", "wood", "water"))
HEIGHT, WIDTH = 70, 100
BARE = {"crs": None, "transform": Affine.identity()}
X, Y = Transformer.from_crs(CRS, "EPSG:3857", always_xy=True).transform(500_000, 5_000_000)


def write(path: Path, values: NDArray[np.generic], **profile: Any) -> Path:
    """Write a GeoTIFF of pixels (bands, H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    shape = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **shape, **({"crs": CRS, "transform": GRID} | profile)) as target:
            target.write(values)
    return path


def image(
    bands: int = 3, dtype: str = "uint8", shape: tuple[int, int] = (HEIGHT, WIDTH)
) -> NDArray[np.generic]:
    return np.random.default_rng(0).integers(1, 200, (bands, *shape)).astype(dtype)


def blobs() -> NDArray[np.uint8]:
    """Return labels 0-2 in patches of 10 x 10 pixels."""
    ids = np.random.default_rng(1).integers(0, 3, (HEIGHT // 10, WIDTH // 10)).astype(np.uint8)
    return ids.repeat(10, 0).repeat(10, 1)[None]


def geojson(path: Path, shapes: list[Any], crs: str | None = None, **columns: list[Any]) -> Path:
    """Write polygons in WGS 84, or in a CRS named as in GeoJSON before RFC 7946."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = [
        {
            "type": "Feature",
            "properties": {name: values[place] for name, values in columns.items()},
            "geometry": shapely.geometry.mapping(shape),
        }
        for place, shape in enumerate(shapes)
    ]
    content: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    if crs:
        content["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(content))
    return path


def box_on_map(top: int, left: int, bottom: int, right: int, crs: str = CRS) -> shapely.Polygon:
    """Return the outline of a box of the scene's pixels."""
    box = shapely.box(500_000 + 2 * left, 5_000_000 - 2 * bottom, 500_000 + 2 * right, 5_000_000 - 2 * top)
    transformer = Transformer.from_crs(CRS, crs, always_xy=True)
    return shapely.transform(box, transformer.transform, interleaved=False)


def labelled_scene(root: Path) -> Path:
    """Write a data set of one scene with a mask and three classes."""
    write(root / "training" / "a.tif", image())
    write(root / "training" / "a_mask.tif", blobs())
    write_classes(CLASSES, root / "classes.json")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return labelled_scene(tmp_path / "data")


def whole(scenes: Scenes) -> NDArray[np.generic]:
    """Return the mask of the only tile."""
    (sample,) = scenes
    return sample["mask"].numpy()


def test_tiles_lie_side_by_side(tmp_path: Path) -> None:
    values, labels = image(2, "uint16", (600, 1100)), np.zeros((1, 600, 1100), np.uint8)
    labels[0, 550:, 1050:] = 1
    write(tmp_path / "training" / "a.tif", values)
    write(tmp_path / "training" / "a_mask.tif", labels)
    write(tmp_path / "training" / "b.tif", image(2, "uint16"))
    write(tmp_path / "training" / "b_mask.tif", blobs() % 2)
    scenes = open_dataset(tmp_path, "training")
    assert isinstance(scenes, Scenes) and scenes.classes == DEFAULT_CLASSES
    assert len(scenes) == 2 * 3 + 1
    assert scenes.names[4:] == ("a_512_512", "a_512_1024", "b_0_0")
    for index, (top, left) in enumerate((top, left) for top in (0, TILE) for left in (0, TILE, 2 * TILE)):
        sample = scenes[index]
        box = (slice(top, top + TILE), slice(left, left + TILE))
        np.testing.assert_array_equal(sample["image"], values[:, *box])
        np.testing.assert_array_equal(sample["mask"], labels[0, *box])
        assert sample["image"].dtype == torch.float32 and sample["name"] == scenes.names[index]
    assert str(scenes.bands) == "2 bands of uint16"


def test_a_pickled_set_reads_the_same(root: Path) -> None:
    scenes = Scenes(root)
    before = scenes[0]
    copy = pickle.loads(pickle.dumps(scenes))
    assert torch.equal(copy[0]["image"], before["image"]) and torch.equal(copy[0]["mask"], before["mask"])


def test_few_rasters_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_RASTERS", 3)
    for number in range(6):
        grid = Affine(2.0, 0, 500_000 + 1000 * number, 0, -2.0, 5_000_000)
        write(tmp_path / "training" / f"{number}.tif", image() + np.uint8(number), transform=grid)
        write(tmp_path / "training" / f"{number}_mask.tif", blobs() % 2, transform=grid)
    scenes = Scenes(tmp_path)
    for index in (0, 3, 5, 0, 1, 2, 3, 4, 5):
        np.testing.assert_array_equal(scenes[index]["image"], image() + np.uint8(index))
        assert len(scenes._open._sources) <= 3


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_pixels_without_data_are_ignored_and_get_the_mean(dtype: str, root: Path) -> None:
    values = image(3, dtype)
    values[:, :20] = 0
    write(root / "training" / "a.tif", values, nodata=0)
    (sample,) = Scenes(root)
    assert (sample["mask"][:20] == 255).all() and (sample["mask"][20:] != 255).all()
    means = values[:, 20:].mean(axis=(1, 2), dtype=np.float64)
    expected = torch.from_numpy(means.round() if dtype == "uint8" else means)
    torch.testing.assert_close(sample["image"][:, 3, 4].double(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(sample["image"][:, 20:], values[:, 20:])


def test_alpha_is_no_image_band(root: Path) -> None:
    values = image(4)
    values[3] = 255
    values[3, :, 90:] = 0
    write(root / "training" / "a.tif", values, photometric="RGB", alpha="YES")
    scenes = Scenes(root)
    assert str(scenes.bands) == "3 bands of uint8 and alpha" and scenes.bands.rgb == (0, 1, 2)
    assert scenes[0]["image"].shape[0] == 3
    assert (scenes[0]["mask"][:, 90:] == 255).all() and (scenes[0]["mask"][:, :90] != 255).all()


def test_a_mask_s_nodata_is_ignored_unless_it_is_a_class(root: Path) -> None:
    ids = blobs()
    write(root / "training" / "a_mask.tif", ids, nodata=0)  # as QGIS writes it
    np.testing.assert_array_equal(whole(Scenes(root)), ids[0])
    ids[0, :5] = 9
    write(root / "training" / "a_mask.tif", ids, nodata=9)
    expected = np.where(ids[0] == 9, 255, ids[0])
    np.testing.assert_array_equal(whole(Scenes(root)), expected)


OTHER_GRIDS = {
    "finer": (CRS, Affine(1.0, 0, 500_000, 0, -1.0, 5_000_000), (140, 200)),
    "shifted": (CRS, Affine(2.0, 0, 500_000 - 40, 0, -2.0, 5_000_000 + 20), (120, 150)),
    "another CRS": ("EPSG:3857", Affine(2.5, 0, X - 40, 0, -2.5, Y + 30), (120, 150)),
    "turned": (CRS, Affine(1.2, 0.9, 499_960, 0.9, -1.2, 4_999_960), (250, 250)),
}


@pytest.mark.parametrize("nodata", [None, 0, 77])
@pytest.mark.parametrize("kind", OTHER_GRIDS)
def test_a_mask_in_another_grid_is_aligned(kind: str, nodata: int | None, root: Path) -> None:
    crs, transform, shape = OTHER_GRIDS[kind]
    there = np.zeros(shape, np.uint8)
    common = {"src_transform": GRID, "src_crs": CRS, "dst_transform": transform, "dst_crs": crs}
    reproject(blobs()[0], there, **common, resampling=Resampling.nearest)
    write(root / "training" / "a_mask.tif", there[None], crs=crs, transform=transform, nodata=nodata)
    found, expected = whole(Scenes(root)), blobs()[0]
    covered = found != 255
    assert covered.mean() > (0.5 if kind == "turned" else 0.99)
    # Where a pixel's centre meets a patch's edge, either side may be the nearest.
    edges = np.ones_like(covered)
    edges[1:-1, 1:-1] = [
        [len(np.unique(expected[y - 1 : y + 2, x - 1 : x + 2])) > 1 for x in range(1, WIDTH - 1)]
        for y in range(1, HEIGHT - 1)
    ]
    assert (found == expected)[covered & ~edges].all()


def test_pixels_outside_the_mask_are_ignored(root: Path) -> None:
    write(root / "training" / "a_mask.tif", blobs()[:, :30, :40])
    found = whole(Scenes(root))
    np.testing.assert_array_equal(found[:30, :40], blobs()[0, :30, :40])
    assert (found[30:] == 255).all() and (found[:, 40:] == 255).all()


def test_without_georeference_scene_and_mask_must_have_the_same_size(root: Path) -> None:
    write(root / "training" / "a.tif", image(), **BARE)
    write(root / "training" / "a_mask.tif", blobs(), **BARE)
    np.testing.assert_array_equal(whole(Scenes(root)), blobs()[0])
    write(root / "training" / "a_mask.tif", blobs()[:, :60], **BARE)
    with pytest.raises(
        DataError, match=r"a_mask\.tif: 100x60 pixels for 100x70 of .*a\.tif, and no georeference"
    ):
        Scenes(root)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", CRS])
@pytest.mark.parametrize("name", ["a", "polygons"])
def test_polygons_are_rasterised(crs: str, name: str, root: Path) -> None:
    (root / "training" / "a_mask.tif").unlink()
    shapes = [
        box_on_map(5, 10, 40, 60, crs),
        box_on_map(20, 50, 30, 90, crs),
        box_on_map(60, 0, 70, 9, crs),
    ]
    known = None if crs == "EPSG:4326" else crs
    geojson(
        root / "training" / f"{name}.geojson",
        shapes,
        known,
        kind=[1, 2, 3],
        **{"class": ["wood", "water", "field"]},
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[5:40, 10:60], expected[20:30, 50:90] = 1, 2
    scenes = Scenes(root)
    np.testing.assert_array_equal(whole(scenes), expected)
    np.testing.assert_array_equal(scenes.labels(0, module.Box(18, 45, 35, 95)), expected[18:35, 45:95])


def test_polygons_without_a_class_column_are_class_1(root: Path) -> None:
    (root / "training" / "a_mask.tif").unlink()
    (root / "classes.json").unlink()
    ring = box_on_map(10, 10, 50, 50).difference(box_on_map(20, 20, 30, 30))
    geojson(root / "training" / "polygons.geojson", [ring], CRS, height=[3.5])
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[10:50, 10:50], expected[20:30, 20:30] = 1, 0
    np.testing.assert_array_equal(whole(Scenes(root)), expected)


def test_polygons_by_number_in_a_geopackage(root: Path) -> None:
    (root / "training" / "a_mask.tif").unlink()
    shapes = np.array([shapely.to_wkb(box_on_map(0, 0, 30, 30)), shapely.to_wkb(box_on_map(10, 10, 20, 20))])
    pyogrio.raw.write(
        root / "training" / "a.gpkg",
        shapes,
        [np.array([2.0, 255.0])],  # 255 is the ignore index
        np.array(["class_id"]),
        crs=CRS,
        geometry_type="Polygon",
    )
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:30, :30], expected[10:20, 10:20] = 2, 255
    np.testing.assert_array_equal(whole(Scenes(root)), expected)


def test_the_polygons_of_one_scene_may_be_empty(root: Path) -> None:
    (root / "training" / "a_mask.tif").unlink()
    geojson(root / "training" / "a.geojson", [])
    (root / "classes.json").unlink()
    assert not whole(Scenes(root)).any()


def test_scenes_must_have_the_same_bands(root: Path) -> None:
    write(root / "training" / "b_mask.tif", blobs())
    for values, found in ((image(4, "uint16"), "4 bands of uint16"), (image(3, "int16"), "3 bands of int16")):
        write(root / "training" / "b.tif", values)
        with pytest.raises(DataError) as caught:
            Scenes(root)
        folder = root / "training"
        assert str(caught.value) == f"{folder}/b.tif: {found}, but {folder}/a.tif has 3 bands of uint8"


@pytest.mark.parametrize("bands", ["1,2,3,4", "4,3,2", "2"])
def test_bands_may_be_chosen_and_ordered(bands: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = image(4)
    values[3, :5] = 0  # near infrared of 0 is data
    write(root / "training" / "a.tif", values, photometric="RGB", alpha="YES")
    scenes = open_dataset(f"{root}?bands={bands}", "training")
    numbers = [int(band) for band in bands.split(",")]
    np.testing.assert_array_equal(scenes[0]["image"][:, 5:], values[[band - 1 for band in numbers], 5:])
    assert isinstance(scenes, Scenes)
    assert str(scenes.bands).startswith(f"{len(numbers)} band")
    assert ((scenes[0]["mask"][:5] != 255).all()) == (4 in numbers)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ("1,2,4", r"a\.tif: has no band 4; its bands are 1, 2, 3"),
        ("0,1", "bands must be different numbers from 1, with commas between them, not '0,1'"),
        ("1,1", "different numbers"),
        ("red", "different numbers"),
        ("", "different numbers"),
    ],
)
def test_bands_that_a_scene_lacks_are_named(bands: str, message: str, root: Path) -> None:
    with pytest.raises(DataError, match=message):
        Scenes(root, bands=bands)


def test_classes_may_be_given_after_the_folder(root: Path, tmp_path: Path) -> None:
    write_classes(Classes(("a", "b", "c", "d")), tmp_path / "own.json")
    assert open_dataset(f"{root}?classes={tmp_path / 'own.json'}", "training").classes.names[3] == "d"
    with pytest.raises(DataError, match="has no option 'image'; the options of scenes are classes"):
        open_dataset(f"{root}?image=pixels", "training")


def test_overlapping_splits_are_warned_about_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def place(crs: str, transform: Affine) -> None:
        write(root / "validation" / "v.tif", image(), crs=crs, transform=transform)
        write(root / "validation" / "v_mask.tif", blobs(), crs=crs, transform=transform)

    place(CRS, Affine(2.0, 0, 500_200, 0, -2.0, 5_000_000))  # begins where the other ends
    Scenes(root)
    Scenes(root, "validation")
    assert capsys.readouterr().err == ""
    place(CRS, Affine(2.0, 0, 500_190, 0, -2.0, 5_000_000))
    for _ in range(2):
        Scenes(root, "validation")
    line = "{one}: overlaps {two} of the other split, so scores will be too high; split scenes by area\n"
    files = {"one": root / "validation" / "v.tif", "two": root / "training" / "a.tif"}
    assert capsys.readouterr().err == line.format(**files)
    place("EPSG:3857", Affine(2.5, 0, X + 100, 0, -2.5, Y))
    Scenes(root)
    assert capsys.readouterr().err == line.format(one=files["two"], two=files["one"])
    write(root / "training" / "a.tif", image(), crs=None)
    write(root / "training" / "a_mask.tif", blobs(), crs=None)
    Scenes(root)
    assert capsys.readouterr().err.startswith(
        f"{files['two']}: has no CRS; cannot check whether the splits overlap"
    )
