"""Read STAC items: single ones, item collections, catalogues and stac-geoparquet, local or remote."""

import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import BaseError
from obstore.store import HTTPStore, ObjectStore
from pystac.utils import make_absolute_href

from ccsegformer.errors import DataError
from ccsegformer.raster.read import reason_of
from ccsegformer.raster.remote import object_store
from ccsegformer.raster.source_files import is_remote

OFFSET_APPLIED = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
"""Properties that say that a Sentinel-2 item's pixels are without their offset: today's, and that before."""
ITEM_COLUMNS = ("id", "collection", "assets", "links", "datetime", "start_datetime", *OFFSET_APPLIED)
ROWS = 1000
"""Number of rows of stac-geoparquet that are in memory at once."""
TRANSIENT = (429, 500, 502, 503, 504)
"""HTTP statuses after which a request is repeated."""
PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each repetition."""


class FoundItem(NamedTuple):
    """A STAC item, or what kept it from being read."""

    content: dict[str, Any]
    base: str
    """Path or address that the item's relative links start from."""
    address: str | None
    """Where the item itself can be read; None if nothing says so."""
    problem: str | None = None


def items_in_json(address: str) -> Iterator[FoundItem]:
    """Yield the items of a STAC document: an Item, ItemCollection, Catalog, Collection or API response.

    Links to items, children and next pages are followed one by one. A link that cannot be read is yielded as
    an item with a problem.

    Raises:
        DataError: the document cannot be read or is none of these, or further pages are asked for by POST.
    """
    yield from _documents(address, {address})


def items_in_parquet(address: str) -> Iterator[FoundItem]:
    """Yield the items of a stac-geoparquet file, which is read in batches, and only the columns needed.

    Raises:
        DataError: the file cannot be read, or lacks the columns `id` and `assets`.
    """
    try:
        table = pq.ParquetFile(_open_parquet(address))
        present = set(table.schema_arrow.names)
    except (pa.ArrowException, BaseError, OSError) as error:
        raise DataError(f"{address}: not a parquet file that can be read: {reason_of(error)}") from error
    if missing := sorted({"id", "assets"} - present):
        raise DataError(f"{address}: not stac-geoparquet: it has no column {' or '.join(missing)}")
    columns = [name for name in ITEM_COLUMNS if name in present]
    batches = table.iter_batches(batch_size=ROWS, columns=columns)
    while True:
        try:
            rows = next(batches).to_pylist()
        except StopIteration:
            return
        except (pa.ArrowException, BaseError, OSError) as error:
            raise DataError(f"{address}: cannot be read: {reason_of(error)}") from error
        for row in rows:
            yield _found(_item_of_row(row), address)


def read_address(address: str) -> bytes:
    """Read a whole file, local, over HTTP, or from an object store with its ordinary credentials.

    Raises:
        DataError: it cannot be read; the message gives the reason.
    """
    try:
        if address.startswith(("http://", "https://")):
            return _get(address)
        if "://" in address:
            return bytes(obstore.get(object_store(_server_of(address)), _key_of(address)).bytes())
        return Path(address).read_bytes()
    except (BaseError, OSError, HTTPException, ValueError) as error:
        reason = next(iter(str(getattr(error, "strerror", None) or error).strip().splitlines()), "")
        raise DataError(f"{address}: cannot be read: {reason or type(error).__name__}") from error


def absolute_href(href: str, base: str) -> str:
    """Return a path or address of a document's link, which may be relative to the document."""
    if href.startswith("file://"):
        return url2pathname(urlsplit(href).path)
    if "://" not in href and is_remote(href):  # of GDAL, such as NETCDF:a.nc:b
        return href
    if "://" in base:
        return str(make_absolute_href(href, base))
    return href if "://" in href else os.path.normpath(Path(base).parent / href)


def _documents(address: str, seen: set[str]) -> Iterator[FoundItem]:
    content = _read_json(address)
    if content.get("type") == "Feature" and "assets" in content:
        yield FoundItem(content, address, address)
    elif content.get("type") == "FeatureCollection":
        yield from _features(content, address, seen)
    elif content.get("type") in ("Catalog", "Collection") or {"links", "stac_version"} <= content.keys():
        yield from _linked(content, address, seen)
    else:
        raise DataError(f"{address}: holds no STAC Item, ItemCollection, Catalog or Collection")


def _features(content: dict[str, Any], address: str, seen: set[str]) -> Iterator[FoundItem]:
    for index, feature in enumerate(content.get("features") or []):
        if not (isinstance(feature, dict) and "assets" in feature and "id" in feature):
            raise DataError(f"{address}: feature {index} is not a STAC item: it has no id or no assets")
        yield _found(feature, address)
    for link in content.get("links") or []:
        if link.get("rel") != "next":
            continue
        if link.get("method", "GET").upper() != "GET":
            raise DataError(
                f"{address}: has further pages, to be asked for by POST; save all with pystac-client"
            )
        href = absolute_href(link["href"], address)
        if href not in seen:
            seen.add(href)
            yield from _documents(href, seen)


def _linked(content: dict[str, Any], address: str, seen: set[str]) -> Iterator[FoundItem]:
    """Follow the links of a catalogue; those to an API's items if it has no others."""
    links = [link for link in content.get("links") or [] if "href" in link]
    chosen = [link for link in links if link.get("rel") in ("item", "child")]
    for link in chosen or [link for link in links if link.get("rel") == "items"]:
        href = absolute_href(link["href"], address)
        if href in seen:
            continue
        seen.add(href)
        try:
            yield from _documents(href, seen)
        except DataError as error:
            yield FoundItem({}, href, href, str(error))


def _read_json(address: str) -> dict[str, Any]:
    try:
        content = json.loads(read_address(address))
    except ValueError as error:
        raise DataError(f"{address}: not JSON: {reason_of(error)}") from error
    if not isinstance(content, dict):
        raise DataError(f"{address}: holds no STAC Item, ItemCollection, Catalog or Collection")
    return content


def _found(item: dict[str, Any], address: str) -> FoundItem:
    """Return an item that is part of a larger file."""
    own = [link["href"] for link in item.get("links") or [] if link.get("rel") == "self" and "href" in link]
    if not own:
        return FoundItem(item, address, None)
    href = absolute_href(own[0], address)
    return FoundItem(item, href, href)


def _item_of_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the item that a row stands for; columns hold null for what the item does not have."""
    assets = {name: asset for name, asset in dict(row.pop("assets") or {}).items() if asset is not None}
    item = {name: row.pop(name, None) for name in ("id", "collection", "links")}
    times = {name: _in_rfc_3339(value) for name, value in row.items()}
    return item | {"assets": assets, "properties": times}


def _in_rfc_3339(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    return value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC).isoformat().replace("+00:00", "Z")


def _open_parquet(address: str) -> Any:
    if "://" not in address:
        return address
    if not address.startswith(("http://", "https://")):
        return _reader(object_store(_server_of(address)), address)
    if urlsplit(address).query:  # obstore would quote it
        return io.BytesIO(read_address(address))
    server = HTTPStore.from_url(_server_of(address), client_options={"allow_http": True})
    return _reader(server, address)


def _reader(store: ObjectStore, address: str) -> Any:
    """Open an object as pyarrow wants it: with the attribute `closed`, which obstore's readers lack."""
    file = obstore.open_reader(store, _key_of(address))
    return SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell, close=file.close, closed=False)


def _get(address: str) -> bytes:
    """Read an address over HTTP, again if the server is busy or does not answer."""
    for pause in (*PAUSES, None):
        try:
            with urllib.request.urlopen(address, timeout=60) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in TRANSIENT or pause is None:
                raise
        except (OSError, HTTPException):
            if pause is None:
                raise
        time.sleep(pause)
    raise AssertionError


def _server_of(address: str) -> str:
    place = urlsplit(address)
    return f"{place.scheme}://{place.netloc}"


def _key_of(address: str) -> str:
    return urlsplit(address).path.lstrip("/")
