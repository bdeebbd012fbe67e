"""The tables of an archive, read back by stac-geoparquet, pystac, GeoPandas and DuckDB."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import geopandas
import pyarrow.parquet as pq
import pystac
import pytest
import shapely
from rasterio import Affine
from stac_geoparquet.arrow import stac_table_to_items

from ccsegformer.archives import tables
from ccsegformer.archives.item import encode_item, map_item
from ccsegformer.archives.reference import SceneAsset, SceneReference
from ccsegformer.archives.tables import write_tables
from ccsegformer.errors import OutputError
from tests.archives.stac_schemas import check_stac
from tests.archives.test_item import CLASSES, PROPERTIES, UTM, write_map


class DictStore:
    """A store in memory, whose keys come in no order."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def put(self, key: str, content: bytes) -> None:
        self.objects[key] = content

    def put_file(self, key: str, file: Path) -> None:
        self.objects[key] = file.read_bytes()

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def keys(self, prefix: str = "") -> Iterator[str]:
        yield from (key for key in reversed(list(self.objects)) if key.startswith(prefix))

    def written(self, folder: Path) -> Path:
        for key, content in self.objects.items():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(content)
        return folder


def add_map(
    store: DictStore,
    folder: Path,
    name: str,
    transform: Affine = UTM,
    crs: str | None = "EPSG:32632",
    *,
    date: str | None = "2024-05-01T10:00:00Z",
    polygons: bool = True,
    **options: Any,
) -> None:
    files = write_map(folder / name, transform, crs, name=name, **options)
    scene = SceneReference(name, (SceneAsset("s3://b/1.tif"),), f"https://a/{name}.json", date)
    if date is None:
        scene = SceneReference(name, ())
    used = files if polygons else {"map": files["map"]}
    item = map_item(scene, used, CLASSES, fingerprint=f"f-{name}", properties=PROPERTIES)
    store.put(f"scenes/{name}/{name}.json", encode_item(item))
    store.put(f"scenes/{name}/{name}.tif", files["map"].read_bytes())
    store.put(f"scenes/{name}/{name}.log", b"{}\n")


@pytest.fixture
def archive(tmp_path: Path) -> DictStore:
    store, folder = DictStore(), tmp_path / "maps"
    add_map(store, folder, "a10")
    add_map(store, folder, "a9", Affine(0.1, 0, 179, 0, -0.1, 49), "EPSG:4326", date="2023-01-01T00:00:00Z")
    laea = "+proj=laea +lat_0=45 +lon_0=9.5 +datum=WGS84"
    add_map(store, folder, "b", Affine(10, 0, 0, 0, -10, 0), laea, polygons=False)
    add_map(store, folder, "c", UTM, "EPSG:32660", date=None, count=2)
    store.put(
        "failed/z.json",
        json.dumps({"name": "z", "href": "s3://b/z", "reason": "größer", "attempts": 4}).encode(),
    )
    store.put(
        "failed/y.json", json.dumps({"name": "y", "href": "y.tif", "reason": "bad", "attempts": 1}).encode()
    )
    return store


def test_items_come_back_as_they_were(
    archive: DictStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ITEM_BATCH", 2)
    write_tables(archive)
    path = archive.written(tmp_path / "out") / "items.parquet"
    assert pq.read_metadata(path).num_row_groups == 2
    found = list(stac_table_to_items(pq.read_table(path)))
    assert [item["id"] for item in found] == ["a10", "a9", "b", "c"]
    for row in found:
        item = pystac.Item.from_dict(row)
        original = pystac.Item.from_dict(json.loads(archive.objects[f"scenes/{item.id}/{item.id}.json"]))
        assert item.datetime == original.datetime and item.bbox == original.bbox
        assert shapely.geometry.shape(item.geometry).equals(shapely.geometry.shape(original.geometry))
        date = {"datetime": item.datetime}  # it has other decimals now
        kept = {key: value for key, value in item.properties.items() if value is not None} | date
        expected = {key: value for key, value in original.properties.items() if value is not None} | date
        assert kept == expected
        assert item.assets.keys() == original.assets.keys()
        assert (path.parent / item.assets["map"].href).is_file()
        assert (
            item.assets["map"].extra_fields["file:checksum"]
            == original.assets["map"].extra_fields["file:checksum"]
        )


def test_geopandas_and_duckdb_read_the_items(archive: DictStore, tmp_path: Path) -> None:
    write_tables(archive)
    path = archive.written(tmp_path / "out") / "items.parquet"
    frame = geopandas.read_parquet(path)
    assert frame.crs == "EPSG:4326" and frame["id"].tolist() == ["a10", "a9", "b", "c"]
    assert frame.geometry.geom_type.tolist() == ["Polygon", "MultiPolygon", "Polygon", "Polygon"]
    with duckdb.connect() as connection:
        connection.execute("SET enable_geoparquet_conversion = false")
        rows = connection.sql(
            f"""SELECT id, "ccsegformer:fingerprint", assets.map.href, bbox.ymax, geometry FROM '{path}'
            WHERE "proj:code" = 'EPSG:4326'"""
        ).fetchall()
    assert len(rows) == 1 and rows[0][:4] == ("a9", "f-a9", "./scenes/a9/a9.tif", 49.0)
    assert shapely.from_wkb(rows[0][4]).area == pytest.approx(12)


def test_failures(archive: DictStore, tmp_path: Path) -> None:
    write_tables(archive)
    path = archive.written(tmp_path / "out") / "failed.parquet"
    rows = duckdb.sql(f"SELECT name, href, reason, attempts FROM '{path}'").fetchall()
    assert rows == [("y", "y.tif", "bad", 1), ("z", "s3://b/z", "größer", 4)]


def test_the_collection(archive: DictStore, tmp_path: Path) -> None:
    write_tables(archive)
    document = json.loads(archive.objects["collection.json"])
    check_stac(document, tmp_path)
    west, south, east, north = document["extent"]["spatial"]["bbox"][0]
    assert (west, east) == pytest.approx((9, -177)) and south < 45.01 and north == pytest.approx(49)
    assert document["extent"]["temporal"]["interval"] == [["2023-01-01T00:00:00Z", "2024-05-01T10:00:00Z"]]
    assert document["assets"]["items"]["roles"] == ["collection-mirror"]
    titles = [one["title"] for one in document["summaries"]["classification:classes"]]
    assert titles == [*CLASSES.names, "No data"]
    assert document["summaries"]["proj:code"] == ["EPSG:32632", "EPSG:32660", "EPSG:4326"]


def test_pystac_walks_the_archive(archive: DictStore, tmp_path: Path) -> None:
    write_tables(archive)
    folder = archive.written(tmp_path / "out")
    collection = pystac.Collection.from_file(folder / "collection.json")
    items = list(collection.get_items())
    assert [item.id for item in items] == ["a10", "a9", "b", "c"]
    for item in items:
        assert item.get_collection() is collection and item.get_parent() is collection
        assert Path(item.assets["map"].get_absolute_href() or "").is_file()


def test_the_same_bytes_whatever_the_order(archive: DictStore) -> None:
    other = DictStore()
    for key in sorted(archive.objects):
        other.put(key, archive.objects[key])
    for store in (archive, other):
        write_tables(store)
    assert archive.objects == other.objects
    write_tables(archive)
    assert archive.objects == other.objects


def test_scenes_that_another_shard_adds_are_in_the_tables(archive: DictStore, tmp_path: Path) -> None:
    class SharedStore(DictStore):
        def put_file(self, key: str, file: Path) -> None:
            super().put_file(key, file)
            if "scenes/late/late.json" not in self.objects:
                add_map(self, tmp_path, "late")

    store = SharedStore()
    store.objects = dict(archive.objects)
    write_tables(store)
    table = pq.read_table(store.written(tmp_path / "out") / "items.parquet")
    assert "late" in table["id"].to_pylist()


def test_damaged_and_other_files_are_left_out(archive: DictStore, tmp_path: Path) -> None:
    archive.put("scenes/d/d.json", b'{"type": "Feat')
    archive.put("scenes/e/other.json", archive.objects["scenes/b/b.json"])
    archive.put("failed/x.json", b"[")
    write_tables(archive)
    folder = archive.written(tmp_path / "out")
    assert pq.read_table(folder / "items.parquet")["id"].to_pylist() == ["a10", "a9", "b", "c"]
    failed = pq.read_table(folder / "failed.parquet").to_pylist()
    assert failed[0] == {"name": "x", "href": "", "reason": "", "attempts": None}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_maps_without_a_place_are_in_the_collection_alone(archive: DictStore, tmp_path: Path) -> None:
    add_map(archive, tmp_path / "maps", "p", Affine.identity(), None)
    write_tables(archive)
    folder = archive.written(tmp_path / "out")
    assert "p" not in pq.read_table(folder / "items.parquet")["id"].to_pylist()
    assert "p" in [item.id for item in pystac.Collection.from_file(folder / "collection.json").get_items()]


def test_values_that_are_null_or_empty_in_all_items(tmp_path: Path) -> None:
    store = DictStore()
    add_map(store, tmp_path / "maps", "b", Affine(10, 0, 0, 0, -10, 0), "+proj=laea +lat_0=45 +datum=WGS84")
    item = json.loads(store.objects["scenes/b/b.json"])
    item["properties"] |= {"ccsegformer:notes": [], "ccsegformer:about": {"none": None}}
    store.put("scenes/b/b.json", json.dumps(item).encode())
    write_tables(store)
    path = store.written(tmp_path / "out") / "items.parquet"
    assert duckdb.sql(f"""SELECT "proj:code" FROM '{path}'""").fetchall() == [(None,)]
    assert len(geopandas.read_parquet(path)) == 1
    assert next(iter(stac_table_to_items(pq.read_table(path))))["id"] == "b"


def test_items_of_different_kinds_end_in_one_line(archive: DictStore) -> None:
    item = json.loads(archive.objects["scenes/b/b.json"])
    item["properties"]["ccsegformer:window"] = "large"
    archive.put("scenes/b/b.json", json.dumps(item).encode())
    with pytest.raises(OutputError, match=r"^items\.parquet: cannot be written, [^\n]*$"):
        write_tables(archive)


def test_an_archive_without_maps_has_no_table_of_items(tmp_path: Path) -> None:
    store = DictStore()
    store.put("items.parquet", b"earlier")
    write_tables(store)
    assert store.objects.keys() == {"failed.parquet", "collection.json"}
    document = json.loads(store.objects["collection.json"])
    check_stac(document, tmp_path)
    assert "assets" not in document
    assert pq.read_table(store.written(tmp_path / "out") / "failed.parquet").num_rows == 0


def test_memory_does_not_grow_with_the_items(archive: DictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ITEM_BATCH", 50)
    item = json.loads(archive.objects["scenes/a10/a10.json"])
    peaks = []
    for count in (100, 500):
        store = DictStore()
        for number in range(count):
            store.put(f"scenes/n{number}/n{number}.json", json.dumps(item | {"id": f"n{number}"}).encode())
        store.put_file = lambda key, file: None  # type: ignore[method-assign, assignment]
        write_tables(store)
        tracemalloc.start()
        write_tables(store)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 400 * 2000  # an item has more than twice that as Python objects
