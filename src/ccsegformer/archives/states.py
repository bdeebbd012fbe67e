"""Tell whether a source has changed: its entity tag, or its size and modification time."""

import re
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import HTTPStore, ObjectStore

from ccsegformer.archives.store import remote_store
from ccsegformer.errors import DataError
from ccsegformer.raster.read import files_of, is_over_network, open_raster

SCHEMES = {"/vsis3/": "s3://", "/vsigs/": "gs://", "/vsiaz/": "az://", "/vsicurl/": ""}
"""GDAL's names of file systems, and what an address begins with in their place."""


def state_of(href: str) -> dict[str, Any]:
    """Return what changes when a source does.

    Args:
        href: Path or address, as in `SceneAsset`.

    Returns:
        `etag` of an address whose server gives one, else its `size` and `modified` time; for a local raster
        `files`, the path, size and modification time (ns) of each file that it is made of.

    Raises:
        DataError: the source is not there, or its server fails.
    """
    address = re.sub("^/vsi[a-z0-9]+/", lambda prefix: SCHEMES.get(prefix[0], prefix[0]), href)
    if not is_over_network(address):
        return {"files": _files(href)}
    if not re.match(r"(https?|s3|gs|az)://", address):
        return {}
    place = urlsplit(address)
    try:
        meta = obstore.head(_server(f"{place.scheme}://{place.netloc}"), place.path.lstrip("/"))
    except (BaseError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        missing = "does not exist: " if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"{href}: {missing}{reason}") from error
    if meta["e_tag"] and not meta["e_tag"].startswith("W/"):
        return {"etag": meta["e_tag"]}
    return {"size": meta["size"], "modified": str(meta["last_modified"])}


def _files(href: str) -> list[list[Any]]:
    with open_raster(href) as source:
        states = [(file, file.stat()) for file in sorted(files_of(source))]
    return [[str(file), status.st_size, status.st_mtime_ns] for file, status in states]


@cache
def _server(address: str) -> ObjectStore:
    if not address.startswith("http"):
        return remote_store(address)
    return HTTPStore.from_url(address, client_options={"allow_http": address.startswith("http:")})
