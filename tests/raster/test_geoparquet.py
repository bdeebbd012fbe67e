"""Polygons of a label map as GeoParquet, read back by GeoPandas and DuckDB."""

import json
import sys
from pathlib import Path
from typing import Any

import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from pyproj import CRS
from rasterio import Affine

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError, MissingExtraError
from ccsegformer.raster import _parquet, polygons
from ccsegformer.raster.polygons import write_polygons

CLASSES = Classes(("ground", "building", "Straße"))
UTM = Affine(2, 0, 500_000, 0, -2, 5_000_000)
LABELS = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 255, 0], [2, 2, 255, 0]], np.uint8)


def write_map(
    path: Path, labels: Any, transform: Affine | None = UTM, crs: str | None = "EPSG:32632"
) -> Path:
    height, width = labels.shape
    profile = {"count": 1, "height": height, "width": width, "dtype": labels.dtype, "nodata": 255}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, crs=crs, **profile) as target:
        target.write(labels, 1)
    return path


@pytest.fixture
def label_map(tmp_path: Path) -> Path:
    return write_map(tmp_path / "map.tif", LABELS)


def read_geo(path: Path) -> dict[str, Any]:
    return json.loads(pq.read_metadata(path).metadata[b"geo"])


def test_geopandas_reads_what_the_geopackage_has(label_map: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.parquet"
    assert write_polygons(label_map, output, classes=CLASSES) == 4
    write_polygons(label_map, tmp_path / "out.gpkg", classes=CLASSES)
    found = geopandas.read_parquet(output)
    expected = geopandas.read_file(tmp_path / "out.gpkg")
    assert list(found.columns) == ["class", "class_id", "area_m2", "geometry"]  # not that of the covering
    assert found.crs == expected.crs == "EPSG:32632"
    assert found["class"].tolist() == expected["class"].tolist() and "Straße" in set(found["class"])
    assert found["area_m2"].tolist() == expected["area_m2"].tolist()
    assert found.geometry.geom_equals_exact(expected.geometry, 0).all()
    assert all(shapely.is_ccw(shape.exterior) for shape in found.geometry)
    boxes = pq.read_table(output)["bbox"].to_pylist()
    assert [tuple(box.values()) for box in boxes] == [shape.bounds for shape in found.geometry]
    assert [path.name for path in output.parent.iterdir()] == ["out.parquet"]


def test_a_box_reads_only_what_meets_it(
    label_map: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polygons, "BATCH", 1)
    monkeypatch.setattr(_parquet, "ROW_GROUP_BYTES", 1)
    output = tmp_path / "out.parquet"
    write_polygons(label_map, output, classes=CLASSES)
    metadata = pq.read_metadata(output)
    assert metadata.num_row_groups == 4
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    inside = geopandas.read_parquet(output, bbox=(500_005, 4_999_997, 500_007, 4_999_999))
    assert inside["class"].tolist() == ["building"]


def test_duckdb_reads_columns_and_shapes(label_map: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    write_polygons(label_map, output, classes=CLASSES)
    with duckdb.connect() as connection:
        connection.execute("SET enable_geoparquet_conversion = false")
        rows = connection.sql(
            f"SELECT class_id, geometry, bbox.xmin FROM '{output}' WHERE bbox.ymax > 4999997 ORDER BY 1"
        ).fetchall()
    assert [row[0] for row in rows] == [0, 1]
    assert shapely.from_wkb(rows[1][1]).bounds == (500_004, 4_999_996, 500_008, 5_000_000)
    assert rows[1][2] == 500_004


def test_the_metadata_are_those_of_the_standard(label_map: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    write_polygons(label_map, output, classes=CLASSES)
    geo = read_geo(output)
    column = geo["columns"][geo["primary_column"]]
    assert geo["version"] == "1.1.0" and column["encoding"] == "WKB"
    assert column["bbox"] == [500_000, 4_999_992, 500_008, 5_000_000]
    assert column["geometry_types"] == ["Polygon"] and column["orientation"] == "counterclockwise"
    assert CRS.from_json_dict(column["crs"]) == CRS(32632)
    first = output.read_bytes()
    write_polygons(label_map, output, classes=CLASSES)
    assert output.read_bytes() == first


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(("transform", "area"), [(UTM, "area_map_units"), (None, "area_pixels")])
def test_maps_without_a_crs(tmp_path: Path, transform: Affine | None, area: str) -> None:
    output = tmp_path / "out.parquet"
    write_polygons(write_map(tmp_path / "map.tif", LABELS, transform, None), output, classes=CLASSES)
    found = geopandas.read_parquet(output)
    assert found.crs is None and area in found.columns
    assert found[area].sum() == (14 * 4 if transform else 14)


def test_a_map_without_regions(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    empty = np.full((3, 3), 255, np.uint8)
    assert write_polygons(write_map(tmp_path / "map.tif", empty), output, classes=CLASSES) == 0
    found = geopandas.read_parquet(output)
    assert len(found) == 0 and found.crs == "EPSG:32632"
    assert "bbox" not in read_geo(output)["columns"]["geometry"]


def test_a_failure_keeps_the_earlier_file(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    output.write_bytes(b"earlier")
    with pytest.raises(DataError, match="label 7 at row 0, column 0"):
        write_polygons(write_map(tmp_path / "map.tif", np.full((2, 2), 7, np.uint8)), output, classes=CLASSES)
    assert output.read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.tif", "out.parquet"]


def test_a_missing_package_is_named(label_map: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"out\.parquet needs pyarrow, .*\[geo\]'$"):
        write_polygons(label_map, tmp_path / "out.parquet", classes=CLASSES)
