"""Polygons of maps that control points or RPCs place, against rasterio's own transformers."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from numpy.typing import NDArray
from pyproj import Geod
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC
from rasterio.transform import GCPTransformer, RPCTransformer

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.labelling.scene import predict_scene
from ccsegformer.raster.polygons import write_polygons
from ccsegformer.raster.read import has_georeference
from tests.raster.test_damaged import threshold

CLASSES = Classes(("dark", "bright"))
SIDE = 100


def curved(column: float, row: float) -> tuple[float, float]:
    """Place pixels of 2 m, turned and bent."""
    x, y = 1.8 * column + 0.6 * row, 0.6 * column - 1.8 * row
    return 500_000 + x + 2e-3 * y**2, 5_000_000 + y - 1e-3 * x * y


def points(number: int, crs_scale: float = 1.0) -> list[GroundControlPoint]:
    pixels = np.random.default_rng(0).uniform(0, SIDE, (number, 2)).tolist()
    places = [curved(column, row) for column, row in pixels]
    return [
        GroundControlPoint(row=row, col=column, x=x * crs_scale, y=y * crs_scale)
        for (column, row), (x, y) in zip(pixels, places, strict=True)
    ]


def rpcs() -> RPC:
    """Return RPCs of pixels of about 1.1e-5 degrees at 15 E, 45 N; heights and products bend them."""
    line, samp = [0.0] * 20, [0.0] * 20
    line[2], line[3], line[4], samp[1], samp[3] = -1.0, 0.02, 0.03, 1.0, 0.05  # 1, lon, lat, height, lon lat
    ones = [1.0, *[0.001] * 3, *[0.0] * 16]
    return RPC(
        height_off=500.0,
        height_scale=100.0,
        lat_off=45.0,
        lat_scale=6e-4,
        long_off=15.0,
        long_scale=6e-4,
        line_off=50.0,
        line_scale=50.0,
        samp_off=50.0,
        samp_scale=50.0,
        line_num_coeff=line,
        line_den_coeff=ones,
        samp_num_coeff=samp,
        samp_den_coeff=ones,
        err_bias=-1.0,
        err_rand=-1.0,
    )


def write(path: Path, values: NDArray[np.uint8], **profile: Any) -> Path:
    bands, height, width = values.shape
    shape = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": "uint8"}
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(path, "w", **shape, **profile) as target,
    ):
        target.write(values)
    return path


PLACED = {
    "3 points": {"gcps": points(3), "crs": "EPSG:32633"},
    "5 points": {"gcps": points(5), "crs": "EPSG:32633"},
    "12 points": {"gcps": points(12), "crs": "EPSG:32633"},
    "RPCs": {"rpcs": rpcs()},
}


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
@pytest.mark.parametrize("kind", PLACED)
def test_polygons_lie_on_the_ground(kind: str, suffix: str, tmp_path: Path) -> None:
    dark = np.zeros((3, SIDE, SIDE), np.uint8)
    dark[:, 20:70, 30:90] = 250
    scene = write(tmp_path / "a.tif", dark, **PLACED[kind])
    assert has_georeference(scene)
    output = tmp_path / f"map{suffix}"
    assert not predict_scene(threshold, scene, tmp_path / "map.tif", classes=CLASSES, polygons=output).notes
    meta, _, shapes, fields = pyogrio.raw.read(output)
    bright = shapely.from_wkb(shapes[fields[1].tolist().index(1)])
    expected = outline(kind)
    crs = "EPSG:4326" if suffix == ".geojson" or kind == "RPCs" else "EPSG:32633"
    assert meta["crs"] == crs and meta["fields"].tolist()[2] == "area_m2"
    degrees = 1 if crs == "EPSG:32633" else 1 / 111_000
    if crs == "EPSG:32633" or kind == "RPCs":
        assert bright.hausdorff_distance(expected) < 0.05 * degrees  # of pixels of 1 to 2 m
    in_degrees = bright if crs == "EPSG:4326" else None
    if in_degrees is not None:
        area = abs(Geod(ellps="WGS84").geometry_area_perimeter(in_degrees)[0])
        assert fields[2][fields[1].tolist().index(1)] == pytest.approx(area, rel=1e-4)


def outline(kind: str) -> shapely.Polygon:
    """Return the box of bright pixels by rasterio's transformer, a point every pixel."""
    ring = shapely.segmentize(shapely.box(30, 20, 90, 70), 1).exterior.coords
    columns, rows = np.array(ring).T
    placed = PLACED[kind]
    if "rpcs" in placed:
        with RPCTransformer(rpcs(), RPC_HEIGHT=500, RPC_PIXEL_ERROR_THRESHOLD=1e-6) as transformer:
            return shapely.Polygon(np.column_stack(transformer.xy(rows, columns, offset="ul")))
    with GCPTransformer(placed["gcps"]) as transformer:
        return shapely.Polygon(np.column_stack(transformer.xy(rows, columns, offset="ul")))


def test_the_mean_height_of_rpcs_counts(tmp_path: Path) -> None:
    """Pixels of the outline are found again by RPCs at that height, and not at another."""
    scene = write(tmp_path / "m.tif", np.ones((1, SIDE, SIDE), np.uint8), **PLACED["RPCs"])
    write_polygons(scene, tmp_path / "m.gpkg", classes=CLASSES)
    (ring,) = shapely.from_wkb(pyogrio.raw.read(tmp_path / "m.gpkg")[2])
    x, y = np.array(ring.exterior.coords).T
    with RPCTransformer(rpcs()) as transformer:
        for height, is_near in ((500, True), (600, False)):
            rows, columns = transformer.rowcol(x, y, np.full(len(x), height), op=np.positive)
            off = np.abs(np.column_stack([rows, columns]))
            edges = np.minimum(off, np.abs(off - SIDE)).min(axis=1)
            assert (edges.max() < 0.01) == is_near


def test_without_a_crs_the_map_s_units_are_kept(tmp_path: Path) -> None:
    scene = write(tmp_path / "a.tif", np.ones((3, SIDE, SIDE), np.uint8), gcps=points(3), crs=CRS())
    options = {"classes": CLASSES, "simplify": 1.0, "polygons": tmp_path / "m.gpkg"}
    predict_scene(threshold, scene, tmp_path / "m.tif", **options)
    meta, _, shapes, fields = pyogrio.raw.read(tmp_path / "m.gpkg")
    assert meta["fields"].tolist()[2] == "area_map_units"
    assert fields[2][0] == pytest.approx(shapely.area(shapely.from_wkb(shapes))[0])


@pytest.mark.parametrize("number", [1, 2])
def test_too_few_points_place_nothing(number: int, tmp_path: Path) -> None:
    scene = write(tmp_path / "m.tif", np.ones((1, SIDE, SIDE), np.uint8), gcps=points(number), crs=CRS())
    write_polygons(scene, tmp_path / "m.gpkg", classes=CLASSES)
    assert pyogrio.read_info(tmp_path / "m.gpkg")["fields"].tolist()[2] == "area_pixels"


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
@pytest.mark.parametrize("kind", ["on a line", "at one place", "not finite"])
def test_points_that_place_nothing_are_refused_before_the_work(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    places = {
        "on a line": [(0, 0), (1, 1), (2, 2), (3, 3)],
        "at one place": [(5, 5)] * 4,
        "not finite": [(0, 0), (float("nan"), 1), (2, 2), (3, 4)],
    }[kind]
    pixels = [(0, 0), (0, 50), (50, 0), (50, 50)]
    gcps = [
        GroundControlPoint(row=row, col=column, x=x, y=y)
        for (row, column), (x, y) in zip(pixels, places, strict=True)
    ]
    scene = write(tmp_path / "a.tif", np.ones((3, SIDE, SIDE), np.uint8), gcps=gcps, crs="EPSG:32633")
    with pytest.raises(DataError, match=r"^\S*a\.tif: its control points ") as caught:
        predict_scene(
            threshold, scene, tmp_path / "map.tif", classes=CLASSES, polygons=tmp_path / f"map{suffix}"
        )
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("*map*"))
