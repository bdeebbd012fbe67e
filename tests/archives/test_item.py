"""STAC items of finished maps, validated against the schemas of STAC and its extensions."""

import json
import os
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from pystac.errors import STACValidationError
from rasterio import Affine
from rasterio.control import GroundControlPoint

from ccsegformer.archives.item import encode_item, map_item, read_fingerprint
from ccsegformer.archives.reference import SceneAsset, SceneReference
from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from tests.archives.stac_schemas import check_stac

CLASSES = Classes(
    ("ground", "Straße 2", "Strasse-2", "水", "木"), ((0, 0, 0), (255, 0, 16), *[(1, 2, 3)] * 3)
)
UTM = Affine(10, 0, 500_000, 0, -10, 5_000_000)
SCENE = SceneReference("s1", (SceneAsset("s3://b/s1.tif"),), "https://a/s1.json", "2024-05-01T10:00:00Z")
PROPERTIES = {"ccsegformer:engine": "torch", "ccsegformer:window": [512, 128], "ccsegformer:bands": [4, 3, 2]}


def write_map(
    folder: Path, transform: Affine = UTM, crs: Any = "EPSG:32632", *, name: str = "s1", **options: Any
) -> dict[str, Path]:
    """Write a map and something that stands for its polygons, and return them as `map_item` takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "width": 40,
        "height": 30,
        "count": 1,
        "dtype": "uint8",
        "nodata": 255,
    } | options
    files = {"map": folder / f"{name}.tif", "polygons": folder / f"{name}.parquet"}
    with rasterio.open(files["map"], "w", transform=transform, crs=crs, **profile) as target:
        target.write(np.zeros((profile["count"], profile["height"], profile["width"]), profile["dtype"]))
    files["polygons"].write_bytes(b"regions")
    return files


def described(files: dict[str, Path], scene: SceneReference = SCENE, **options: Any) -> dict[str, Any]:
    options = {"fingerprint": "f1", "properties": PROPERTIES} | options
    return json.loads(encode_item(map_item(scene, files, CLASSES, **options)))


def test_an_item_of_a_map(tmp_path: Path) -> None:
    files = write_map(tmp_path / "maps")
    item = described(files, model="https://a/model.json")
    check_stac(item, tmp_path)
    found = item["properties"]
    assert (item["id"], item["collection"], found["datetime"]) == ("s1", "maps", "2024-05-01T10:00:00Z")
    assert found.items() >= (PROPERTIES | {"ccsegformer:fingerprint": "f1"}).items()
    assert found["proj:code"] == "EPSG:32632" and found["proj:shape"] == [30, 40]
    assert found["proj:transform"] == list(UTM[:6])
    assert found["proj:bbox"] == [500_000, 4_999_700, 500_400, 5_000_000]
    assert found["processing:software"].keys() == {"ccsegformer"}
    assert item["bbox"] == pytest.approx([9, 45.150777, 9.005089, 45.153477], abs=1e-6)
    assert item["geometry"]["type"] == "Polygon"
    assert shapely.is_ccw(shapely.Polygon(item["geometry"]["coordinates"][0]).exterior)
    asset = item["assets"]["map"]
    assert asset["href"] == "./s1.tif" and item["assets"]["polygons"]["href"] == "./s1.parquet"
    content = files["map"].read_bytes()
    assert (asset["file:checksum"], asset["file:size"]) == (
        f"1220{sha256(content).hexdigest()}",
        len(content),
    )
    derived = [link["href"] for link in item["links"] if link["rel"] == "derived_from"]
    assert derived == ["https://a/s1.json", "https://a/model.json"]
    collections = {link["href"] for link in item["links"] if link["rel"] != "derived_from"}
    assert collections == {"../../collection.json"}


def test_class_names_of_gdal_are_metadata(tmp_path: Path) -> None:
    files = write_map(tmp_path / "maps")
    files["names"] = tmp_path / "maps" / "s1.tif.aux.xml"
    files["names"].write_text("<PAMDataset/>")
    item = described(files)
    check_stac(item, tmp_path)
    found = item["assets"]["names"]
    assert (found["href"], found["roles"], found["type"]) == (
        "./s1.tif.aux.xml",
        ["metadata"],
        "application/xml",
    )


def test_a_map_without_a_nodata_value(tmp_path: Path) -> None:
    item = described(write_map(tmp_path / "maps", nodata=None))
    check_stac(item, tmp_path)
    asset = item["assets"]["map"]
    assert "nodata" not in asset and len(asset["classification:classes"]) == len(CLASSES)


def test_classes_with_colours_and_unique_plain_names(tmp_path: Path) -> None:
    asset = described(write_map(tmp_path / "maps"))["assets"]["map"]
    found = asset["classification:classes"]
    assert [one["title"] for one in found] == [*CLASSES.names, "No data"]
    names = [one["name"] for one in found]
    assert names[:2] == ["ground", "Stra_e_2"] and len(set(names)) == len(names)
    assert found[1]["color_hint"] == "FF0010" and found[1]["value"] == 1
    assert found[-1] == {"value": 255, "name": "nodata", "title": "No data", "nodata": True}
    assert (asset["data_type"], asset["nodata"]) == ("uint8", 255)


def test_classes_of_a_map_with_confidence_belong_to_its_first_band(tmp_path: Path) -> None:
    item = described(write_map(tmp_path / "maps", count=2, dtype="uint16", nodata=65535))
    check_stac(item, tmp_path)
    first, second = item["assets"]["map"]["bands"]
    assert first["classification:classes"][-1]["value"] == 65535
    assert second["name"] == "confidence" and "65534" in second["description"]
    assert "classification:classes" not in item["assets"]["map"]


def test_the_bytes_are_those_of_the_map_alone(tmp_path: Path) -> None:
    items = []
    for folder in ("one", "two"):
        files = write_map(tmp_path / folder)
        properties = PROPERTIES if folder == "one" else dict(reversed(PROPERTIES.items()))
        items.append(encode_item(map_item(SCENE, files, CLASSES, fingerprint="f", properties=properties)))
    assert items[0] == items[1]
    assert pystac.Item.from_dict(json.loads(items[0])).id == "s1"


@pytest.mark.parametrize(
    ("left", "bbox"),
    [
        (-181, [179, 46, -177, 49]),
        (179, [179, 46, -177, 49]),
        (190, [-170, 46, -166, 49]),
        (176, [176, 46, 180, 49]),
    ],
)
def test_outlines_are_cut_at_the_antimeridian(tmp_path: Path, left: float, bbox: list[float]) -> None:
    item = described(write_map(tmp_path / "maps", Affine(0.1, 0, left, 0, -0.1, 49), "EPSG:4326"))
    check_stac(item, tmp_path)
    assert item["bbox"] == pytest.approx(bbox)
    shape = shapely.geometry.shape(item["geometry"])
    assert shape.area == pytest.approx(12)
    assert item["geometry"]["type"] == ("MultiPolygon" if bbox[0] > bbox[2] else "Polygon")
    assert shape.bounds[0] >= -180 and shape.bounds[2] <= 180


@pytest.mark.parametrize(
    ("transform", "crs", "bbox"),
    [
        (Affine(9, 0, -180, 0, -6, 90), "EPSG:4326", [-180, -90, 180, 90]),
        (Affine(9, 0, 0, 0, -6, 90), "EPSG:4326", [-180, -90, 180, 90]),
        (Affine(3e4, 0, -6e5, 0, -4e4, 6e5), "EPSG:3995", [-180, 82.28, 180, 90]),
        (Affine(3e4, 0, -6e5, 0, -4e4, 6e5), "EPSG:3031", [-180, -90, 180, -82.28]),
    ],
)
def test_the_whole_earth_and_the_poles(
    tmp_path: Path, transform: Affine, crs: str, bbox: list[float]
) -> None:
    item = described(write_map(tmp_path / "maps", transform, crs))
    check_stac(item, tmp_path)
    assert item["bbox"] == pytest.approx(bbox, abs=0.1)


def test_a_utm_scene_across_the_antimeridian(tmp_path: Path) -> None:
    item = described(write_map(tmp_path / "maps", Affine(1e4, 0, 6e5, 0, -1e4, 5e6), "EPSG:32660"))
    west, _, east, _ = item["bbox"]
    assert 178 < west < 180 and -178 < east < -176 and item["geometry"]["type"] == "MultiPolygon"


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (Affine.identity(), None),
        (UTM, None),
        (UTM, 'LOCAL_CS["site",UNIT["metre",1]]'),
        (Affine(4e5, 0, -8e6, 0, -4e5, 8e6), "+proj=geos +h=35785831 +lon_0=0"),
    ],
)
def test_scenes_without_a_place_on_the_earth(tmp_path: Path, transform: Affine, crs: str | None) -> None:
    item = described(write_map(tmp_path / "maps", transform, crs))
    check_stac(item, tmp_path)
    assert item["geometry"] is None and "bbox" not in item
    assert ("proj:transform" in item["properties"]) == (transform != Affine.identity())


def test_a_crs_without_a_code(tmp_path: Path) -> None:
    item = described(write_map(tmp_path / "maps", crs="+proj=laea +lat_0=45 +lon_0=9 +datum=WGS84"))
    check_stac(item, tmp_path)
    assert item["properties"]["proj:code"] is None and "Lambert" in item["properties"]["proj:wkt2"]
    assert len(item["bbox"]) == 4


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_scene_placed_by_control_points(tmp_path: Path) -> None:
    files = write_map(tmp_path / "maps", Affine.identity(), None)
    corners = [(0, 0, 9, 46), (0, 40, 10, 46), (30, 0, 9, 45), (30, 40, 10, 45)]
    with rasterio.open(files["map"], "r+") as target:
        points = [GroundControlPoint(row, column, x, y) for row, column, x, y in corners]
        target.gcps = points, rasterio.CRS.from_epsg(4326)
    assert described(files)["bbox"] == pytest.approx([9, 45, 10, 46])


@pytest.mark.parametrize(
    ("given", "tags", "date", "origin"),
    [
        ("2024-05-01T10:00:00.5+02:00", {}, "2024-05-01T08:00:00.500000Z", "item"),
        (
            "yesterday",
            {"TIFFTAG_DATETIME": "2020:02:03 04:05:06"},
            "2020-02-03T04:05:06Z",
            "TIFFTAG_DATETIME",
        ),
        (
            None,
            {"TIFFTAG_DATETIME": "2020:02:03 04:05:06", "ACQUISITIONDATETIME": "2019-01-02 03:04:05"},
            "2019-01-02T03:04:05Z",
            "ACQUISITIONDATETIME",
        ),
        (None, {"TIFFTAG_DATETIME": "0000:00:00 00:00:00"}, "2021-06-07T08:09:10Z", "modification"),
        (None, {}, "2021-06-07T08:09:10Z", "modification"),
    ],
)
def test_where_the_date_is_from(
    tmp_path: Path, given: str | None, tags: dict[str, str], date: str, origin: str
) -> None:
    source = write_map(tmp_path / "scenes")["map"]
    with rasterio.open(source, "r+") as target:
        target.update_tags(**tags)
    modified = datetime(2021, 6, 7, 8, 9, 10, tzinfo=UTC).timestamp()
    os.utime(source, (modified, modified))
    scene = SceneReference("s1", (SceneAsset(str(source)),), None, given)
    item = described(write_map(tmp_path / "maps"), scene)
    check_stac(item, tmp_path)
    assert (item["properties"]["datetime"], item["properties"]["ccsegformer:datetime_from"]) == (date, origin)
    assert [link["href"] for link in item["links"] if link["rel"] == "derived_from"] == [str(source)]


def test_a_given_time_of_modification_and_no_date_at_all(tmp_path: Path) -> None:
    files = write_map(tmp_path / "maps")
    bare = SceneReference("s1", ())
    item = described(files, bare, properties={"datetime": "2022-01-01T00:00:00Z"})
    assert item["properties"]["datetime"] == "2022-01-01T00:00:00Z"
    unknown = described(files, bare)["properties"]
    assert (unknown["datetime"], unknown["ccsegformer:datetime_from"]) == ("1970-01-01T00:00:00Z", "unknown")


@pytest.mark.parametrize(
    ("href", "kept"),
    [
        ("https://a/1.tif?se=2026&sig=abc%3D", "https://a/1.tif"),
        ("https://a/1.tif?X-Amz-Date=1&X-Amz-Signature=abc", "https://a/1.tif"),
        ("https://a/1.tif?Expires=1&Signature=abc", "https://a/1.tif"),
        ("https://a/get?file=1.tif&design=2", "https://a/get?file=1.tif&design=2"),
        ("/scenes/what?sig=1.tif", "/scenes/what?sig=1.tif"),
    ],
)
def test_signatures_do_not_get_into_items(tmp_path: Path, href: str, kept: str) -> None:
    scene = SceneReference("s1", (SceneAsset(href),), None, SCENE.datetime)
    links = described(write_map(tmp_path), scene)["links"]
    assert [link["href"] for link in links if link["rel"] == "derived_from"] == [kept]


def test_a_source_that_is_gone_is_named(tmp_path: Path) -> None:
    scene = SceneReference("s1", (SceneAsset(str(tmp_path / "gone.tif")),))
    with pytest.raises(DataError, match=r"gone\.tif: no such file"):
        described(write_map(tmp_path / "maps"), scene)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"properties": 3}',
        b'{"properties": {}}',
        b'{"properties": {"ccsegformer:fingerprint": 7}}',
    ],
)
def test_no_fingerprint_in_damaged_or_other_files(content: bytes) -> None:
    assert read_fingerprint(content) is None


def test_the_fingerprint_of_an_item(tmp_path: Path) -> None:
    item = map_item(SCENE, write_map(tmp_path), CLASSES, fingerprint="abc", properties={})
    content = encode_item(item)
    assert read_fingerprint(content) == "abc"
    assert read_fingerprint(content[:-20]) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda item: item["properties"].update({"processing:software": {"ccsegformer": 1}}),
        lambda item: item["properties"].update({"proj:shape": "30 x 40"}),
        lambda item: item["assets"]["map"].update({"file:size": "big"}),
        lambda item: item["assets"]["map"]["classification:classes"][0].update({"name": "with space"}),
        lambda item: item["properties"].pop("datetime"),
    ],
)
def test_the_validation_finds_faults(tmp_path: Path, damage: Any) -> None:
    item = described(write_map(tmp_path / "maps"))
    damage(item)
    with pytest.raises(STACValidationError):
        check_stac(item, tmp_path)
