"""Label maps written as polygons and read back with GDAL."""

import json
import resource
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError, OutputError
from ccsegformer.raster import polygons
from ccsegformer.raster.polygons import write_polygons

CLASSES = Classes(("ground", "building", "Straße"))
NODATA = 255
UTM = Affine(2, 0, 500_000, 0, -2, 5_000_000)  # on the central meridian: scale 0.9996


@pytest.fixture
def label_map(tmp_path: Path) -> Any:
    def write(labels: Any, transform: Affine = UTM, crs: str | None = "EPSG:32632", **options: Any) -> Path:
        band = np.asarray(labels, options.pop("dtype", np.uint8))
        band = band if band.ndim == 3 else band[None]
        path = tmp_path / "map.tif"
        profile = {"count": len(band), "height": band.shape[1], "width": band.shape[2], "dtype": band.dtype}
        profile |= {"nodata": NODATA, "transform": transform, "crs": crs} | options
        with pytest.warns(NotGeoreferencedWarning) if transform.is_identity else nullcontext():
            target = rasterio.open(path, "w", driver="GTiff", **profile)
        with target:
            target.write(band)
        return path

    return write


def read(path: Path) -> tuple[dict[str, list[Any]], list[shapely.Geometry]]:
    meta, _, shapes, fields = pyogrio.raw.read(path)
    columns = {name: column.tolist() for name, column in zip(meta["fields"], fields, strict=True)}
    return columns, list(shapely.from_wkb(shapes))


def zone(south: float, north: float, degrees: float) -> float:
    """Return the area in m2 between two WGS 84 parallels, over `degrees` of longitude (Snyder 1987, 3-12)."""
    squared = (2 - 1 / 298.257223563) / 298.257223563
    eccentricity = np.sqrt(squared)
    sine = np.sin(np.deg2rad([south, north]))
    q = (1 - squared) * (sine / (1 - squared * sine**2) + np.arctanh(eccentricity * sine) / eccentricity)
    return float(6378137.0**2 * np.deg2rad(degrees) * (q[1] - q[0]) / 2)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_features_of_a_map_with_confidence(
    label_map: Any, tmp_path: Path, suffix: str, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polygons, "STRIP_PIXELS", 9)  # three strips
    monkeypatch.setattr(polygons, "BATCH", 2)
    labels = [
        [0, 0, 0, 0, NODATA],
        [0, 1, 1, 0, NODATA],
        [0, 1, 1, 0, 2],
        [0, 0, 0, 0, 2],
        [1, 0, 0, 0, 2],
    ]
    confidence = np.full((5, 5), 80)
    output = tmp_path / "new" / f"out{suffix}"
    count = write_polygons(label_map([labels, confidence], dtype=dtype), output, classes=CLASSES)
    columns, shapes = read(output)
    assert count == 4 == len(shapes)
    assert list(columns) == ["class", "class_id", "area_m2"]
    rows = sorted(zip(columns["class_id"], columns["class"], columns["area_m2"], strict=True))
    assert [name for _, name, _ in rows] == ["ground", "building", "building", "Straße"]
    pixels = np.array([15, 1, 4, 3])
    assert [area for *_, area in rows] == pytest.approx(pixels * 4 / 0.9996**2, rel=1e-6)
    assert pyogrio.read_info(output)["crs"] == ("EPSG:32632" if suffix == ".gpkg" else "EPSG:4326")
    assert pyogrio.list_layers(output).tolist() == [["out", "Polygon"]]
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name]
    if suffix == ".gpkg":
        street = shapes[columns["class_id"].index(2)]
        assert street.equals(shapely.box(500_008, 4_999_990, 500_010, 4_999_996))
    assert all(shapely.is_ccw(shape.exterior) for shape in shapes)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_areas_on_the_ellipsoid(label_map: Any, tmp_path: Path, suffix: str) -> None:
    """Check a 1 degree cell, a ring of cells, Web Mercator, and a polygon of over half the Earth."""
    output = tmp_path / f"out{suffix}"
    degrees = Affine(1, 0, 10, 0, -1, 48)
    write_polygons(label_map([[1]], degrees, "EPSG:4326"), output, classes=CLASSES)
    assert read(output)[0]["area_m2"] == pytest.approx([zone(47, 48, 1)], rel=1e-7)

    write_polygons(label_map([[0] * 3, [0, 1, 0], [0] * 3], degrees, "EPSG:4326"), output, classes=CLASSES)
    hole = zone(46, 47, 1)
    assert sorted(read(output)[0]["area_m2"]) == pytest.approx([hole, zone(45, 48, 3) - hole], rel=1e-7)

    mercator = 6378137.0 * np.arcsinh(np.tan(np.deg2rad(60)))  # planar areas are four times too large there
    transform = Affine(1000, 0, 0, 0, -1000, mercator + 1000)
    write_polygons(label_map(np.ones((2, 3)), transform, "EPSG:3857"), output, classes=CLASSES)
    assert read(output)[0]["area_m2"][0] == pytest.approx(6e6 / 4, rel=0.01)

    world = np.repeat([[0], [0], [0], [0], [0], [1]], 12, axis=1)
    write_polygons(label_map(world, Affine(30, 0, -180, 0, -30, 90), "EPSG:4326"), output, classes=CLASSES)
    assert read(output)[0]["area_m2"] == pytest.approx([zone(-60, 90, 360), zone(-90, -60, 360)], rel=1e-7)


def test_long_lines_of_the_map_are_densified(label_map: Any, tmp_path: Path) -> None:
    """The 60th parallel is straight in Mercator, but kilometres away from the geodesic between its ends."""
    output = tmp_path / "out.gpkg"
    y = [6378137.0 * np.arcsinh(np.tan(np.deg2rad(latitude))) for latitude in (60, 61)]
    wide = Affine(6378137.0 * np.deg2rad(10), 0, 0, 0, y[0] - y[1], y[1])
    write_polygons(label_map([[1]], wide, "EPSG:3857"), output, classes=CLASSES)
    assert read(output)[0]["area_m2"][0] == pytest.approx(zone(60, 61, 10), rel=1e-6)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(1, 0, 179, 0, -1, 11)),
        ("EPSG:4326", Affine(1, 0, -181, 0, -1, 11)),
        ("EPSG:3832", Affine(111_319.49079327, 0, 29 * 111_319.49079327, 0, -111_000, 1_220_000)),
        ("EPSG:32660", Affine(2000, 0, 825_000, 0, -2000, 1_150_000)),
    ],
)
def test_geojson_is_cut_at_the_antimeridian(
    label_map: Any, tmp_path: Path, crs: str, transform: Affine
) -> None:
    path = label_map([[1, 1]], transform, crs)
    write_polygons(path, tmp_path / "out.geojson", classes=CLASSES)
    write_polygons(path, tmp_path / "out.gpkg", classes=CLASSES)
    columns, (shape,) = read(tmp_path / "out.geojson")
    assert shape.geom_type == "MultiPolygon" and shape.is_valid
    west, east = sorted(shape.geoms, key=lambda part: part.bounds[0])
    assert west.bounds[0] == -180 and west.bounds[2] < -178 and east.bounds[2] == 180 and east.bounds[0] > 178
    assert all(shapely.is_ccw(part.exterior) for part in shape.geoms)
    planar, (whole,) = read(tmp_path / "out.gpkg")
    assert whole.geom_type == "Polygon" and planar["area_m2"] == columns["area_m2"]
    height, width = shape.bounds[3] - shape.bounds[1], west.bounds[2] + 180 + 180 - east.bounds[0]
    middle = (shape.bounds[3] + shape.bounds[1]) / 2
    assert columns["area_m2"][0] == pytest.approx(
        zone(middle - height / 2, middle + height / 2, width), rel=0.05
    )


def test_a_map_from_0_to_360_degrees(label_map: Any, tmp_path: Path) -> None:
    output = tmp_path / "out.geojson"
    write_polygons(
        label_map(np.ones((1, 36)), Affine(10, 0, 0, 0, -10, 50), "EPSG:4326"), output, classes=CLASSES
    )
    columns, (shape,) = read(output)
    assert shape.geom_type == "Polygon" and shape.equals(shapely.box(-180, 40, 180, 50))
    assert columns["area_m2"] == pytest.approx([zone(40, 50, 360)], rel=1e-7)


def test_a_pole_in_the_map(label_map: Any, tmp_path: Path) -> None:
    output = tmp_path / "out.geojson"
    path = label_map(np.ones((4, 4)), Affine(5e5, 0, -1e6, 0, -5e5, 1e6), "EPSG:3413")
    write_polygons(path, output, classes=CLASSES)
    columns, (shape,) = read(output)
    assert shape.is_valid and shape.covers(shapely.Point(0, 90)) and shape.covers(shapely.Point(100, 85))
    assert columns["area_m2"][0] == pytest.approx(4e12, rel=0.07)  # to scale only at 70 degrees


def test_a_rotated_map(label_map: Any, tmp_path: Path) -> None:
    cos, sin = np.cos(0.5), np.sin(0.5)
    transform = Affine(3 * cos, 2 * sin, 500_000, 3 * sin, -2 * cos, 5_000_000)
    output = tmp_path / "out.gpkg"
    path = label_map([[NODATA, 1], [NODATA, 1]], transform)
    write_polygons(path, output, classes=CLASSES)
    columns, (shape,) = read(output)
    a, b, c, d, e, f = transform[:6]
    corners = [(a * x + b * y + c, d * x + e * y + f) for x, y in ((1, 0), (2, 0), (2, 2), (1, 2))]
    assert shapely.normalize(shape).equals_exact(shapely.normalize(shapely.Polygon(corners)), 1e-6)
    assert columns["area_m2"] == pytest.approx([12 / 0.9996**2], rel=1e-6)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_a_map_without_data(label_map: Any, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"out{suffix}"
    assert write_polygons(label_map(np.full((4, 4), NODATA)), output, classes=CLASSES) == 0
    info = pyogrio.read_info(output)
    assert info["features"] == 0 and info["layer_name"] == "out"
    if suffix == ".gpkg":
        assert list(info["fields"]) == ["class", "class_id", "area_m2"]


def test_the_ignore_index_is_no_region(label_map: Any, tmp_path: Path) -> None:
    classes = Classes(("ground", "building"), ignore_index=7)
    path = label_map([[7, 0], [7, 0]], nodata=None)
    assert write_polygons(path, tmp_path / "out.gpkg", classes=classes) == 1


def test_simplified_in_map_units(label_map: Any, tmp_path: Path) -> None:
    stairs = (np.arange(40)[:, None] > np.arange(40)).astype(np.uint8)
    path, output = label_map(stairs), tmp_path / "out.gpkg"  # pixels of 2 m: a step is a triangle of 2 m2
    for tolerance, fewer in ((None, False), (0, False), (1.3, False), (1.6, True)):
        write_polygons(path, output, classes=CLASSES, simplify=tolerance)
        columns, shapes = read(output)
        assert all((len(shape.exterior.coords) < 12) is fewer for shape in shapes)
        assert shapely.union_all(shapes).area == sum(shape.area for shape in shapes) == 80 * 80
        assert columns["area_m2"] == pytest.approx([shape.area / 0.9996**2 for shape in shapes], rel=1e-6)


def test_without_crs_areas_are_in_map_units_or_pixels(label_map: Any, tmp_path: Path) -> None:
    output = tmp_path / "out.gpkg"
    write_polygons(label_map([[1, 1]], Affine(3, 0, 7, 0, -3, 9), None), output, classes=CLASSES)
    columns, (shape,) = read(output)
    assert columns["area_map_units"] == [18] and shape.equals(shapely.box(7, 6, 13, 9))
    write_polygons(label_map([[1, 1]], Affine.identity(), None), output, classes=CLASSES)
    columns, (shape,) = read(output)
    assert columns["area_pixels"] == [2] and shape.equals(shapely.box(0, -1, 2, 0))
    assert pyogrio.read_info(output)["crs"] is None


def test_invalid_input_is_a_one_line_error_and_keeps_the_old_file(
    label_map: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polygons, "STRIP_PIXELS", 2)
    old = tmp_path / "old.gpkg"
    write_polygons(label_map([[0]]), old, classes=CLASSES)
    content = old.read_bytes()
    good = label_map([[0, 1]])
    for simplify in (-1, float("nan")):
        with pytest.raises(OutputError, match=r"old\.gpkg: simplify must be 0 or more, .*not (-1|nan)$"):
            write_polygons(good, old, classes=CLASSES, simplify=simplify)
    with pytest.raises(
        OutputError, match=r"out\.shp: polygons are written as \.gpkg, \.geojson or \.parquet$"
    ):
        write_polygons(good, tmp_path / "out.shp", classes=CLASSES)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"out\.gpkg: cannot be written"):
        write_polygons(good, tmp_path / "file" / "out.gpkg", classes=CLASSES)
    with pytest.raises(DataError, match=r"map\.tif: label 9 at row 1, column 1 is outside the classes 0-2$"):
        write_polygons(label_map([[0, 1], [1, 9]]), old, classes=CLASSES)
    with pytest.raises(DataError, match=r"map\.tif: 3 bands of uint8; a label map has one"):
        write_polygons(label_map(np.zeros((3, 2, 2))), old, classes=CLASSES)
    with pytest.raises(DataError, match=r"map\.tif: 1 bands of float32"):
        write_polygons(label_map([[0.5]], dtype=np.float32), old, classes=CLASSES)
    with pytest.raises(OutputError, match=r"out\.geojson: GeoJSON needs longitude and latitude.* \.gpkg$"):
        write_polygons(label_map([[0]], crs=None), tmp_path / "out.geojson", classes=CLASSES)
    assert old.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "map.tif", "old.gpkg"]


def test_a_damaged_map_names_its_rows(
    label_map: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polygons, "STRIP_PIXELS", 64 * 16)
    noise = np.random.default_rng(0).integers(0, 3, (64, 64))
    path = label_map(noise, compress="deflate", blockysize=16)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)
    with pytest.raises(DataError, match=r"map\.tif: rows \d+-\d+ cannot be read: ") as raised:
        write_polygons(path, tmp_path / "out.gpkg", classes=CLASSES)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_a_full_disk_leaves_nothing(label_map: Any, tmp_path: Path, suffix: str) -> None:
    path = label_map(np.random.default_rng(0).integers(0, 3, (64, 64)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written") as raised:
            write_polygons(path, tmp_path / f"out{suffix}", classes=CLASSES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


def test_geojson_is_valid_utf_8_json(label_map: Any, tmp_path: Path) -> None:
    write_polygons(label_map([[2, 2]]), tmp_path / "streets.geojson", classes=CLASSES)
    content = json.loads((tmp_path / "streets.geojson").read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection" and "crs" not in content
    assert content["features"][0]["properties"]["class"] == "Straße"


@pytest.mark.parametrize("side", [1.0, 0.05, 0.01, 0.002])
def test_geojson_is_as_precise_as_the_pixel(label_map: Any, tmp_path: Path, side: float) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (12, 12))
    path = label_map(labels, Affine(side, 0, 500_000, 0, -side, 5_000_000))
    areas = []
    for name in ("a.gpkg", "a.geojson"):
        write_polygons(path, tmp_path / name, classes=CLASSES)
        shapes = read(tmp_path / name)[1]
        if name.endswith("json"):
            to_map = Transformer.from_crs("EPSG:4326", "EPSG:32632", always_xy=True).transform
            shapes = [shapely.transform(shape, to_map, interleaved=False) for shape in shapes]
        areas.append(shapely.area(shapes))
    np.testing.assert_allclose(areas[1], areas[0], rtol=5e-3)


@pytest.mark.parametrize(
    "crs", ["+proj=longlat +R=1737400 +no_defs", "+proj=eqc +R=1737400 +units=m +no_defs", "IAU_2015:49900"]
)
def test_geojson_of_another_body_is_refused(label_map: Any, tmp_path: Path, crs: str) -> None:
    path = label_map([[0, 1]], Affine(1, 0, 10, 0, -1, 48), rasterio.CRS.from_user_input(crs).to_wkt())
    with pytest.raises(OutputError, match=r"a\.geojson: GeoJSON needs .* on WGS 84, .*; write a \.gpkg"):
        write_polygons(path, tmp_path / "a.geojson", classes=CLASSES)
    assert not (tmp_path / "a.geojson").exists()
    assert write_polygons(path, tmp_path / "a.gpkg", classes=CLASSES) == 2
