"""Files of polygons as people have them: chosen layers and columns, text, NULL, and GeoParquet."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pyogrio
import pytest
import rasterio
import shapely
from pyproj import CRS as ProjCRS
from pyproj import Transformer
from rasterio.features import rasterize

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import DataError
from ccsegformer.raster import _geoparquet
from ccsegformer.raster.dataset import Scenes
from ccsegformer.raster.read import Box
from ccsegformer.sources import open_dataset
from tests.raster.test_polygon_labels import CLASSES, CRS, GRID, labels, polygons, rectangle, scene

WHOLE = Box(0, 0, 60, 80)
SHAPES = [rectangle(0, 0, 40, 40), rectangle(20, 20, 60, 60), rectangle(50, 0, 60, 80)]


def geoparquet(
    path: Path, shapes: list[Any], crs: Any = CRS, metadata: dict[str, Any] | None = None, **columns: Any
) -> Path:
    described: dict[str, Any] = {"encoding": "WKB", "geometry_types": []}
    if crs != "missing":
        described["crs"] = crs and ProjCRS(crs).to_json_dict()
    geo = {"version": "1.1.0", "primary_column": "shape", "columns": {"shape": described | (metadata or {})}}
    wkb = [None if shape is None else shapely.to_wkb(shape) for shape in shapes]
    table = pyarrow.table(columns | {"shape": pyarrow.array(wkb, pyarrow.binary())})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
    return path


def drawn(values: list[int]) -> np.ndarray:
    return rasterize(list(zip(SHAPES, values, strict=True)), (60, 80), transform=GRID, dtype="int32")


@pytest.mark.parametrize("column", ["use", "USE", "Use"])
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb", ".parquet"])
def test_the_column_of_the_class_is_chosen(suffix: str, column: str, tmp_path: Path) -> None:
    scene(tmp_path)
    write_classes(CLASSES, tmp_path / "classes.json")
    write = geoparquet if suffix == ".parquet" else polygons
    path = write(tmp_path / "training" / f"a{suffix}", SHAPES[:1], label=["x"], Use=["water"])
    data = open_dataset(f"{tmp_path}?column={column}", "training")
    assert isinstance(data, Scenes)
    np.testing.assert_array_equal(data.labels(0, WHOLE)[:41, :41], np.pad(np.full((40, 40), 2), (0, 1)))
    with pytest.raises(DataError) as caught:
        Scenes(tmp_path, column="none")
    assert str(caught.value) == f"{path}: has no column 'none' (the columns are label, Use)"


def test_the_layer_is_chosen(tmp_path: Path) -> None:
    scene(tmp_path)
    path = polygons(tmp_path / "training" / "a.gpkg", SHAPES[:1])
    options = {"geometry_type": "Polygon", "crs": CRS, "layer": "roofs", "append": True}
    pyogrio.raw.write(path, np.array([shapely.to_wkb(SHAPES[2])], object), [], [], **options)
    data = open_dataset(f"{tmp_path}?layer=roofs", "training")
    assert isinstance(data, Scenes) and data.labels(0, WHOLE).sum() == 800
    assert Scenes(tmp_path, layer="a").labels(0, WHOLE).sum() == 1600
    with pytest.raises(DataError) as caught:
        Scenes(tmp_path, layer="walls")
    assert str(caught.value) == f"{path}: has no layer 'walls' of polygons; its layers are a, roofs"


def test_layer_and_column_are_for_polygons(tmp_path: Path) -> None:
    profile = {"driver": "GTiff", "count": 1, "height": 60, "width": 80, "dtype": "uint8"}
    mask = scene(tmp_path).with_name("a_mask.tif")
    with rasterio.open(mask, "w", **profile, crs=CRS, transform=GRID) as target:
        target.write(np.zeros((1, 60, 80), np.uint8))
    for options in ({"column": "use"}, {"layer": "a"}):
        with pytest.raises(DataError, match="training: holds masks alone; the options layer and column are"):
            Scenes(tmp_path, **options)
    for option in ("layer=a", "column=use"):
        with pytest.raises(DataError, match=f"procedural: has no option '{option.partition('=')[0]}'"):
            open_dataset(f"procedural?{option}", "training")


@pytest.mark.parametrize(
    "values",
    [["1", "2", "0"], ["01", " 2 ", "0"], ["1.0", "2.0", "0."], [1.0, 2.0, 0.0], ["wood", "2", "field"]],
)
@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".parquet"])
def test_numbers_as_text(suffix: str, values: list[Any], tmp_path: Path) -> None:
    scene(tmp_path)
    write_classes(CLASSES, tmp_path / "classes.json")
    write = geoparquet if suffix == ".parquet" else polygons
    write(tmp_path / "training" / f"a{suffix}", SHAPES, label=values)
    np.testing.assert_array_equal(labels(tmp_path), drawn([1, 2, 0]))


def test_a_name_comes_before_a_number(tmp_path: Path) -> None:
    scene(tmp_path)
    write_classes(Classes(("2", "1", "0")), tmp_path / "classes.json")
    polygons(tmp_path / "training" / "a.gpkg", SHAPES, label=["0", "1", "2"])
    np.testing.assert_array_equal(labels(tmp_path), drawn([2, 1, 0]))


@pytest.mark.parametrize("value", ["3", "1.5", "-1", "wod", "1e0", "٢"])
def test_other_text_is_refused(value: str, tmp_path: Path) -> None:
    scene(tmp_path)
    write_classes(CLASSES, tmp_path / "classes.json")
    polygons(tmp_path / "training" / "a.fgb", SHAPES[:1], label=[value])
    with pytest.raises(DataError, match=f"feature 0 has the class '{value}', which is none of field"):
        Scenes(tmp_path)


@pytest.mark.parametrize("values", [["wood", None, "water"], ["1", "", "2"], [1.0, np.nan, 2.0]])
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".parquet"])
def test_without_a_class_a_polygon_is_unlabelled(
    suffix: str, values: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene(tmp_path)
    write_classes(CLASSES, tmp_path / "classes.json")
    column = np.array(values) if isinstance(values[0], float) else np.array(values, object)
    write = geoparquet if suffix == ".parquet" else polygons
    path = write(tmp_path / "training" / f"a{suffix}", SHAPES, label=column)
    np.testing.assert_array_equal(labels(tmp_path), drawn([1, CLASSES.ignore_index, 2]))
    feature = 2 if suffix == ".gpkg" else 1
    said = f"{path}: 1 of 3 features have no class, the first is feature {feature}; their pixels are ignored"
    assert capsys.readouterr().err == f"{said}\n"


@pytest.mark.parametrize("crs", [CRS, "EPSG:3857", "missing", "OGC:CRS84"])
@pytest.mark.parametrize("name", ["a", "polygons"])
def test_geoparquet_is_drawn_in_its_order(name: str, crs: str, tmp_path: Path) -> None:
    scene(tmp_path)
    write_classes(CLASSES, tmp_path / "classes.json")
    generator = np.random.default_rng(0)
    corners, sides = generator.integers(0, 50, (60, 2)), generator.integers(5, 30, (60, 2))
    shapes = [rectangle(y, x, y + h, x + w) for (y, x), (h, w) in zip(corners, sides, strict=True)]
    to_file = Transformer.from_crs(CRS, "EPSG:4326" if crs == "missing" else crs, always_xy=True).transform
    stored = [shapely.transform(shape, to_file, interleaved=False) for shape in shapes]
    ids = generator.integers(0, 3, 60)
    geoparquet(
        tmp_path / "training" / f"{name}.parquet", [*stored, None], crs, class_id=[*ids.tolist(), None]
    )
    expected = rasterize(list(zip(shapes, ids.tolist(), strict=True)), (60, 80), transform=GRID)
    data = open_dataset(tmp_path, "training")
    assert isinstance(data, Scenes)
    np.testing.assert_array_equal(data.labels(0, WHOLE), expected)
    np.testing.assert_array_equal(data.labels(0, Box(11, 13, 40, 47)), expected[11:40, 13:47])


def test_geoparquet_is_read_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene(tmp_path)
    path = geoparquet(tmp_path / "training" / "a.parquet", SHAPES[:1])
    read, count = pyarrow.parquet.read_table, []
    monkeypatch.setattr(pyarrow.parquet, "read_table", lambda *a, **o: (count.append(a), read(*a, **o))[1])
    data = Scenes(tmp_path)
    assert [data.labels(0, Box(0, 0, 20, side)).sum() for side in (10, 20, 80)] == [200, 400, 800]
    assert len(count) == 1
    geoparquet(path, SHAPES[2:])
    _geoparquet._read_table.cache_clear()  # a coarse clock may not notice
    assert Scenes(tmp_path).labels(0, WHOLE).sum() == 800


def test_unusable_geoparquet_is_a_one_line_error(tmp_path: Path) -> None:
    scene(tmp_path)
    path = tmp_path / "training" / "a.parquet"
    for options, message in (
        ({"metadata": {"encoding": "polygon"}}, "geometries are encoded as polygon; save them as WKB"),
        ({"crs": None}, "has no CRS, which its polygons need"),
        ({"label": [["wood"]]}, "polygons cannot be read: unhashable type: 'list'"),
    ):
        with pytest.raises(DataError) as caught:
            geoparquet(path, SHAPES[:1], **options)
            Scenes(tmp_path)
        assert str(caught.value) == f"{path}: {message}"
    pyarrow.parquet.write_table(pyarrow.table({"label": ["wood"]}), path)
    with pytest.raises(DataError, match="has no GeoParquet metadata"):
        Scenes(tmp_path)
    path.write_bytes(b"PAR1 and nothing")
    with pytest.raises(DataError, match="polygons cannot be read: "):
        Scenes(tmp_path)
