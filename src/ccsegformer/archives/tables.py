"""List an archive's maps and failures: `items.parquet`, `failed.parquet` and `collection.json`."""

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from stac_geoparquet.arrow import parse_stac_ndjson_to_parquet

from ccsegformer.archives._collection import COLLECTION, ITEMS, Overview, collection_of
from ccsegformer.archives.item import COLLECTION_ID, parse_object, read_fingerprint
from ccsegformer.archives.store import Store, failure_key, item_key, read_each
from ccsegformer.errors import OutputError

FAILED = "failed.parquet"
ITEM_BATCH = 1000
"""Number of items that are in memory at a time."""
PASSES = 3
"""How often the tables are written at most while other shards add scenes."""
FAILED_SCHEMA = pa.schema(
    [("name", pa.string()), ("href", pa.string()), ("reason", pa.string()), ("attempts", pa.int32())]
)


def write_tables(store: Store) -> None:
    """Write the tables of all maps and failures that lie in a store, in the order of their names.

    `items.parquet` is stac-geoparquet; its hrefs begin at the archive's folder, where the table itself lies.
    It leaves out maps without a place on the Earth, as that format has none for them. The collection lists
    all. Damaged items are left out of both. If another shard adds scenes meanwhile, all are written again, so
    that the tables hold every scene once all shards have ended.

    Raises:
        OutputError: a table cannot be written, for instance as two items have values of different types.
    """
    mapped, failed = _scene_names(store, "scenes/"), _scene_names(store, "failed/")
    for _ in range(PASSES):
        _write_all(store, mapped, failed)
        known = mapped, failed
        mapped, failed = _scene_names(store, "scenes/"), _scene_names(store, "failed/")
        if known == (mapped, failed):
            return


def _write_all(store: Store, mapped: list[str], failed: list[str]) -> None:
    overview = Overview()
    with tempfile.TemporaryDirectory() as folder:
        lines, table = Path(folder, "items.ndjson"), Path(folder, ITEMS)
        placed = _write_lines(lines, _read_items(store, mapped), overview)
        collection = collection_of(overview, placed > 0)
        if placed:
            _write_items(lines, table, collection)
            store.put_file(ITEMS, table)
        else:
            store.delete(ITEMS)
    store.put(FAILED, _failures(store, failed))
    store.put(COLLECTION, json.dumps(collection, indent=2, ensure_ascii=False).encode() + b"\n")


def _write_items(lines: Path, table: Path, collection: dict[str, Any]) -> None:
    """Write items as stac-geoparquet, in two passes over their lines: for the schema, then for the rows."""
    collections = {COLLECTION_ID: collection | {"links": []}}
    try:
        parse_stac_ndjson_to_parquet(
            lines, table, chunk_size=ITEM_BATCH, collections=collections, compression="zstd"
        )
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise OutputError(f"{ITEMS}: cannot be written, as the items differ in kind: {reason}") from error


def _scene_names(store: Store, prefix: str) -> list[str]:
    """Return the names of the scenes that have an item, or a record of a failure."""
    found = []
    for key in store.keys(prefix):
        name = key.rpartition("/")[2].removesuffix(".json")
        if key in (item_key(name), failure_key(name)):
            found.append(name)
    return sorted(found)


def _read_items(store: Store, names: list[str]) -> Iterator[dict[str, Any]]:
    for content in read_each(store, [item_key(name) for name in names]):
        if read_fingerprint(content) is not None:
            yield parse_object(content)


def _write_lines(path: Path, items: Iterable[dict[str, Any]], overview: Overview) -> int:
    """Write items that have a place as lines of JSON; return their number."""
    count = 0
    with path.open("w", encoding="ascii") as file:
        for item in items:
            overview.add(item)
            if item["geometry"] is not None:
                file.write(json.dumps(_seen_from_archive(item)) + "\n")
                count += 1
    return count


def _seen_from_archive(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item whose relative addresses begin at the archive's folder."""
    folder = f"./scenes/{item['id']}/"
    assets = {key: asset | {"href": _moved(asset["href"], folder)} for key, asset in item["assets"].items()}
    links = [link | {"href": _moved(link["href"], folder)} for link in item["links"]]
    return item | {"assets": assets, "links": links}


def _moved(href: str, folder: str) -> str:
    if href.startswith("./"):
        return folder + href[2:]
    return f"./{href[6:]}" if href.startswith("../../") else href


def _failures(store: Store, names: list[str]) -> bytes:
    """Return the records of failures as a Parquet file."""
    records = []
    contents = read_each(store, [failure_key(name) for name in names])
    for name, content in zip(names, contents, strict=True):
        record = parse_object(content)
        about = [str(record.get(key, "")) for key in ("href", "reason")]
        attempts = record.get("attempts")
        records.append([name, *about, attempts if isinstance(attempts, int) else None])
    columns: list[Any] = list(zip(*records, strict=True)) or [[]] * len(FAILED_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, FAILED_SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=FAILED_SCHEMA), sink, compression="zstd")
    return sink.getvalue().to_pybytes()
