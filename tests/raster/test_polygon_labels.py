"""Labels land where they are: order, columns, layers, formats, the antimeridian and whole-Earth scenes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.features import rasterize

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import DataError
from ccsegformer.raster.dataset import Scenes
from ccsegformer.raster.read import Box

CRS = "EPSG:32633"
GRID = Affine(1.0, 0, 500_000, 0, -1.0, 5_000_000)
CLASSES = Classes(("field", "wood", "water"))
DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".shp": "ESRI Shapefile", ".fgb": "FlatGeobuf"}


def scene(
    root: Path, transform: Affine = GRID, crs: str = CRS, shape: tuple[int, int] = (60, 80), name: str = "a"
) -> Path:
    path = root / "training" / f"{name}.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = shape
    profile = {"driver": "GTiff", "count": 3, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform) as target:
        target.write(np.full((3, *shape), 7, np.uint8))
    return path


def polygons(path: Path, shapes: list[Any], crs: str = CRS, kind: str = "Polygon", **columns: Any) -> Path:
    pyogrio.raw.write(
        path,
        np.array(shapely.to_wkb(shapes), object),
        [np.array(values) for values in columns.values()],
        np.array(list(columns)),
        crs=crs,
        geometry_type=kind,
        driver=DRIVERS[path.suffix],
    )
    return path


def labels(root: Path, box: Box | None = None) -> NDArray[np.int32]:
    scenes = Scenes(root)
    whole = Box(0, 0, scenes.scenes[0].height, scenes.scenes[0].width)
    return scenes.labels(0, box or whole)


def rectangle(top: int, left: int, bottom: int, right: int) -> shapely.Polygon:
    return shapely.box(500_000 + left, 5_000_000 - bottom, 500_000 + right, 5_000_000 - top)


@pytest.mark.parametrize("suffix", DRIVERS)
@pytest.mark.parametrize("count", [20, 52, 300])
def test_overlapping_polygons_lie_in_the_order_of_the_file(suffix: str, count: int, tmp_path: Path) -> None:
    scene(tmp_path)
    write_classes(CLASSES, tmp_path / "classes.json")
    generator = np.random.default_rng(0)
    corners = generator.integers(0, 50, (count, 2))
    sides = generator.integers(5, 30, (count, 2))
    shapes = [rectangle(y, x, y + h, x + w) for (y, x), (h, w) in zip(corners, sides, strict=True)]
    path = polygons(tmp_path / "training" / f"a{suffix}", shapes, class_id=generator.integers(0, 3, count))
    _, _, stored, (ids,) = pyogrio.raw.read(path, columns=["class_id"])  # all, in the order of the file
    if suffix != ".fgb":  # its writer sorts
        assert all(shapely.equals(shapely.from_wkb(stored), shapes))
    expected = rasterize(
        [(shapely.from_wkb(wkb), label) for wkb, label in zip(stored, ids.tolist(), strict=True)],
        (60, 80),
        transform=GRID,
    )
    np.testing.assert_array_equal(labels(tmp_path), expected)
    np.testing.assert_array_equal(labels(tmp_path, Box(11, 13, 40, 47)), expected[11:40, 13:47])


@pytest.mark.parametrize("column", ["Class", "CLASS", "Class_ID", "LABEL", "label"])
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb"])
def test_column_names_in_any_case(suffix: str, column: str, tmp_path: Path) -> None:
    scene(tmp_path)
    shapes = [rectangle(0, 0, 20, 20), rectangle(20, 20, 40, 40)]
    polygons(tmp_path / "training" / f"a{suffix}", shapes, **{column: ["background", "object"]})
    found = labels(tmp_path)
    assert found.sum() == 400 and (found[20:40, 20:40] == 1).all()


def test_a_styles_table_is_no_layer(tmp_path: Path) -> None:
    scene(tmp_path)
    path = polygons(tmp_path / "training" / "a.gpkg", [rectangle(0, 0, 20, 20)])
    styles = {"fields": np.array(["styleName"]), "field_data": [np.array(["red"], object)]}
    pyogrio.raw.write(path, None, **styles, layer="layer_styles", geometry_type=None, append=True)
    assert len(pyogrio.list_layers(path)) == 2
    assert labels(tmp_path).sum() == 400
    polygons_of = {"geometry_type": "Polygon", "crs": CRS, "layer": "b", "append": True}
    pyogrio.raw.write(path, np.array([shapely.to_wkb(rectangle(0, 0, 1, 1))], object), [], [], **polygons_of)
    with pytest.raises(DataError, match=r"a\.gpkg: has 2 layers \(a, b\); choose one with --label-layer"):
        Scenes(tmp_path)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_an_empty_file_is_an_empty_scene(suffix: str, tmp_path: Path) -> None:
    scene(tmp_path)
    write_classes(CLASSES, tmp_path / "classes.json")
    path = tmp_path / "training" / f"a{suffix}"
    if suffix == ".geojson":
        path.write_text('{"type": "FeatureCollection", "features": []}')
    else:
        polygons(path, [])
    assert not labels(tmp_path).any()


def test_shared_polygons_need_not_touch_every_scene(tmp_path: Path) -> None:
    scene(tmp_path)
    scene(tmp_path, Affine(1, 0, 600_000, 0, -1, 5_000_000), name="b")
    path = polygons(tmp_path / "training" / "polygons.gpkg", [rectangle(0, 0, 20, 20)])
    scenes = Scenes(tmp_path)
    assert scenes.labels(0, Box(0, 0, 60, 80)).sum() == 400 and not scenes.labels(1, Box(0, 0, 60, 80)).any()
    (tmp_path / "training" / "a.tif").unlink()
    with pytest.raises(DataError) as caught:
        Scenes(tmp_path)
    assert str(caught.value) == f"{path}: does not overlap any scene of {tmp_path}"


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_points_and_lines_are_ignored_by_name(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene(tmp_path)
    point, line = (
        shapely.Point(500_050.5, 4_999_959.5),
        shapely.LineString([(500_030, 4_999_970), (500_070, 4_999_970)]),
    )
    mixed = shapely.GeometryCollection([rectangle(50, 70, 60, 80), point])
    shapes = [rectangle(0, 0, 20, 20), point, line, mixed]
    path = polygons(tmp_path / "training" / f"a{suffix}", shapes, kind="Unknown")
    assert labels(tmp_path).sum() == 500
    first = 2 if suffix == ".gpkg" else 1
    said = capsys.readouterr().err
    assert said == f"{path}: 2 features that are no polygons are ignored; feature {first} is a Point\n"
    path.unlink()
    polygons(path, [point, line], kind="Unknown")
    with pytest.raises(DataError, match=r"holds no polygons; feature . is a Point"):
        Scenes(tmp_path)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32660"])
@pytest.mark.parametrize("west", [179.5, -180.5])
def test_polygons_on_both_sides_of_the_antimeridian(west: float, crs: str, tmp_path: Path) -> None:
    scene(tmp_path, Affine(0.01, 0, west, 0, -0.01, 10), "EPSG:4326", (40, 100))
    shapes = [shapely.box(179.7, 9.7, 179.9, 9.9), shapely.box(-179.9, 9.7, -179.7, 9.9)]
    to_map = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform
    drawn = [shapely.transform(shape.segmentize(0.01), to_map, interleaved=False) for shape in shapes]
    expected = np.zeros((40, 100), np.int32)
    expected[10:30, 20:40] = expected[10:30, 60:80] = 1
    for which in ([0, 1], [0], [1]):
        path = tmp_path / "training" / "a.gpkg"
        path.unlink(missing_ok=True)
        polygons(path, [drawn[number] for number in which], crs)
        wanted = expected.copy()
        wanted[:, : 0 if 0 in which else 50] = 0
        wanted[:, 100 if 1 in which else 50 :] = 0
        differ = (labels(tmp_path) != wanted).sum()
        assert differ == 0


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:3035", "EPSG:3857", "EPSG:4326"])
def test_polygons_in_any_crs_on_a_scene_of_the_whole_earth(crs: str, tmp_path: Path) -> None:
    scene(tmp_path, Affine(1, 0, -180, 0, -1, 90), "EPSG:4326", (180, 360))
    to_map = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform
    shape = shapely.transform(shapely.box(6.2, 44.2, 11.8, 48.8).segmentize(0.05), to_map, interleaved=False)
    polygons(tmp_path / "training" / "a.gpkg", [shape], crs)
    found = labels(tmp_path)
    assert found.sum() == 30 and (found[41:46, 186:192] == 1).all()


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint32", "int64", "float32", "float64"])
def test_masks_of_whole_numbers(dtype: str, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 2, (1, 60, 80)).astype(dtype)
    scene(tmp_path)
    profile = {"driver": "GTiff", "count": 1, "height": 60, "width": 80, "dtype": dtype, "nodata": -1}
    if dtype == "uint32":
        profile.pop("nodata")
    else:
        ids[0, 3, 4] = -1
    path = tmp_path / "training" / "a_mask.tif"
    with rasterio.open(path, "w", **profile, crs=CRS, transform=GRID) as target:
        target.write(ids)
    np.testing.assert_array_equal(labels(tmp_path), np.where(ids[0] < 0, 65535, ids[0].astype(int)))
    if dtype.startswith("float"):
        with rasterio.open(path, "r+") as target:
            ids[0, 5, 6] = 1.5
            target.write(ids)
        with pytest.raises(DataError) as caught:
            labels(tmp_path)
        assert str(caught.value) == f"{path}: 1.5 at row 5, column 6 is no class id; masks hold whole numbers"


@pytest.mark.parametrize("zones", [("EPSG:32660", "EPSG:32601"), ("EPSG:4326", "EPSG:4326")])
def test_splits_that_overlap_across_the_antimeridian_are_named(
    zones: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, crs, west in (("training", zones[0], 179.9), ("validation", zones[1], -180.05)):
        x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(west, 10)
        side = 0.002 if crs == "EPSG:4326" else 200
        path = scene(tmp_path / split, Affine(side, 0, x, 0, -side, y), crs)
        polygons(path.with_suffix(".gpkg"), [shapely.box(x, y - side, x + side, y)], crs)
        (tmp_path / "both").mkdir(exist_ok=True)
        path.parent.rename(tmp_path / "both" / split)
    Scenes(tmp_path / "both", "training")
    assert "of the other split, so scores will be too high" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [{}, {"class_id": [1]}, {"class": ["building"]}])
def test_polygons_of_the_only_class_lie_on_its_background(columns: dict[str, Any], tmp_path: Path) -> None:
    scene(tmp_path)
    write_classes(Classes(("building",)), tmp_path / "classes.json")
    polygons(tmp_path / "training" / "a.gpkg", [rectangle(0, 0, 20, 20)], **columns)
    found = labels(tmp_path)
    assert found.sum() == 400 and (found[:20, :20] == 1).all()
