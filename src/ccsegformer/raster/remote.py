"""Files on servers: how to reach them, and what tells whether they have changed.

GDAL reads them. Object stores are asked for their state, and written to, by obstore, an optional package.
"""

import os
import re
from contextlib import suppress
from datetime import datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cache
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from ccsegformer.errors import DataError

FILE_SYSTEMS = {"/vsis3/": "s3://", "/vsigs/": "gs://", "/vsiaz/": "az://", "/vsicurl/": ""}
"""GDAL's names of file systems, and what an address begins with in their place."""
TIMEOUT = 30
"""Seconds to wait for a server's answer about a file."""
GONE = (404, 410)


def remote_state(path: str) -> dict[str, Any]:
    """Return what changes when a file on a server does.

    Returns:
        The strong `etag` that the server gives, else `size` and `modified` as far as it gives them. Nothing
        if it answers only to GDAL's credentials, or by a protocol or an object store that cannot be asked.

    Raises:
        DataError: the file does not exist, or the server fails.
    """
    about = _about(path)
    if (etag := about.get("ETag")) and not etag.startswith("W/"):
        return {"etag": etag}
    found = {"size": about.get("Content-Length"), "modified": about.get("Last-Modified")}
    return {name: str(value) for name, value in found.items() if value is not None}


def remote_modified(path: str) -> datetime | None:
    """Return when a file on a server was modified, if the server says.

    Raises:
        DataError: as `remote_state`.
    """
    modified = _about(path).get("Last-Modified")
    if modified is None or isinstance(modified, datetime):
        return modified
    with suppress(ValueError):
        return parsedate_to_datetime(modified)
    return None


def _about(path: str) -> Message | dict[str, Any]:
    """Ask a server about a file, under the names of HTTP's headers."""
    address = re.sub("^/vsi[a-z0-9]+/", lambda prefix: FILE_SYSTEMS.get(prefix[0], prefix[0]), path)
    if re.match("https?://", address):
        return _headers(path, address)
    return _object(path, address) if re.match("(s3|gs|az)://", address) else {}


def _headers(path: str, address: str) -> Message | dict[str, Any]:
    """Ask an HTTP server for a file's headers; one that refuses HEAD, as signed addresses do, for a byte."""
    url = quote(address, safe="%/:?&=#+,;@!$'()*~[]")
    try:
        status, headers = _answer(Request(url, method="HEAD"))
        if (400 <= status < 500 and status not in GONE) or status == 501:
            status, headers = _answer(Request(url, headers={"Range": "bytes=0-0"}))
            if size := headers.get("Content-Range", "").rpartition("/")[2]:
                del headers["Content-Length"]  # of the byte
                headers["Content-Length"] = size
    except (OSError, HTTPException, ValueError) as error:  # the connection, and addresses such as http://[
        raise DataError(f"{path}: the server does not answer: {first_line(error)}") from error
    if status in (401, 403):
        return {}
    if status >= 400:
        missing = "does not exist: " if status in GONE else ""
        raise DataError(f"{path}: {missing}the server answers {status}")
    return headers


def _answer(request: Request) -> tuple[int, Message]:
    """Return the status and headers of an answer."""
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:
            return answer.status, answer.headers
    except HTTPError as error:
        with error:
            return error.code, error.headers


def _object(path: str, address: str) -> dict[str, Any]:
    """Ask an object store about an object."""
    try:
        import obstore
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
    except ImportError:
        return {}
    place = urlsplit(address)
    try:
        found = obstore.head(object_store(f"{place.scheme}://{place.netloc}"), address.split("/", 3)[3])
    except (PermissionDeniedError, UnauthenticatedError):
        return {}
    except (BaseError, OSError, IndexError, ValueError) as error:
        missing = "does not exist: " if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"{path}: {missing}{first_line(error)}") from error
    return {"ETag": found["e_tag"], "Content-Length": found["size"], "Last-Modified": found["last_modified"]}


@cache
def object_store(address: str) -> Any:
    """Connect to a bucket, or a prefix in one, once in each process; obstore raises its own errors."""
    from obstore.store import from_url

    options: dict[str, Any] = {}
    if address.startswith("s3:"):
        endpoint = s3_endpoint()
        if endpoint:
            options = {"endpoint": endpoint, "client_options": {"allow_http": endpoint.startswith("http:")}}
        if os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "1"):  # GDAL's name
            options["skip_signature"] = True
    return from_url(address, **options)


def s3_endpoint() -> str | None:
    """Return the address of an S3-compatible server, such as MinIO, where one takes the place of Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def s3_options() -> dict[str, str]:
    """Return GDAL's options for `s3_endpoint`; none if GDAL's own variable is set."""
    endpoint = s3_endpoint()
    if not endpoint or "AWS_S3_ENDPOINT" in os.environ:
        return {}
    scheme, _, host = endpoint.rpartition("://")
    return {
        "AWS_S3_ENDPOINT": host.rstrip("/"),
        "AWS_HTTPS": "NO" if scheme == "http" else "YES",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }


def first_line(error: Exception) -> str:
    """Return the first line of an error, such as one of obstore, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
