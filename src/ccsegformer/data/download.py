"""One large file by HTTP: continued where it broke off, and never glued together from two files."""

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ccsegformer.errors import DataError, OutputError
from ccsegformer.files import require_space, write_atomically

CHUNK = 1 << 20
OnBytes = Callable[[int, int | None], None]


class _Interrupted(Exception):
    """The transfer ended early in a way that another attempt may mend; the message says how."""


class _Part(NamedTuple):
    """What is on disk of the file: `size` bytes of the one that the server called `validator`."""

    size: int = 0
    validator: str = ""
    total: int | None = None


def download(
    address: str,
    path: Path,
    *,
    begins: bytes = b"",
    timeout: float = 60,
    attempts: int = 5,
    pause: float = 1,
    on_bytes: OnBytes = lambda size, total: None,
) -> None:
    """Fetch `address` to `path`, going on from `path.partial` if an earlier call left one there.

    A part is continued only while the server shows, by ETag or Last-Modified, that it is still the same
    file; otherwise the file begins again. `path` appears once every byte that the server announced is there.

    Args:
        address: of HTTP or HTTPS.
        path: of the file; its folder exists.
        begins: the bytes that such a file begins with; another file is refused at once.
        timeout: seconds without a byte after which the connection is given up.
        attempts: connections without progress, one after another, before giving up.
        pause: seconds before the second attempt; doubled before each further one.
        on_bytes: called with the bytes on disk, and those announced if any were.

    Raises:
        DataError: the server does not answer, refuses, or sends another file.
        OutputError: the file cannot be written, for instance on a full disk; the part is kept.
    """
    partial = path.with_name(f"{path.name}.partial")
    reached, failures = _part(partial, address).size, 0
    while True:
        try:
            _attempt(address, partial, begins, timeout, on_bytes)
            break
        except _Interrupted as interruption:
            size = _part(partial, address).size
            failures = 0 if size > reached else failures + 1
            reached = max(reached, size)
            if failures >= attempts:
                kept = f"; {size:,} bytes are kept in {partial}: run again to go on" if size else ""
                raise DataError(f"{address}: {interruption}{kept}") from interruption
        time.sleep(pause * 2 ** max(failures - 1, 0))
    with _writing(path):
        partial.replace(path)
        _notes(partial).unlink(missing_ok=True)


def _attempt(address: str, partial: Path, begins: bytes, timeout: float, on_bytes: OnBytes) -> None:
    """One connection: on return the part is the whole file."""
    part = _part(partial, address)
    if part.total is not None and part.size == part.total:
        return
    headers = {"Accept-Encoding": "identity"}
    if part.size:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # the part is longer than the file is now
                _discard(partial)
                raise _Interrupted("the file changed on the server") from error
            if error.code in (408, 429) or error.code >= 500:
                raise _Interrupted(f"the server answers {error.code} {error.reason}") from error
            raise DataError(f"{address}: the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_reason(error, timeout)) from error
    with response:
        chunks = _chunks(response, timeout)
        if response.status == 206:
            if not _continues(response, part):
                _discard(partial)
                raise _Interrupted("the server sends another part than was asked for")
        else:
            first = next(chunks, b"")
            if not first.startswith(begins[: len(first)]):  # a log-in page must not cost the part
                kind = response.headers.get_content_type()
                raise DataError(f"{address}: the server sends another file, of type {kind}")
            part, chunks = _begin(address, partial, response), chain([first], chunks)
        if part.total is not None:
            require_space(partial.parent, part.total - part.size)
        with _writing(partial, "ab") as file:
            for chunk in chunks:
                file.write(chunk)
                part = part._replace(size=part.size + len(chunk))
                on_bytes(part.size, part.total)
    if part.total is not None and part.size != part.total:
        raise _Interrupted(f"the connection broke off after {part.size:,} of {part.total:,} bytes")


def _chunks(response: http.client.HTTPResponse, timeout: float) -> Iterator[bytes]:
    """What arrives, as it arrives."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(_reason(error, timeout)) from error
        if not chunk:
            return
        yield chunk


def _part(partial: Path, address: str) -> _Part:
    """The part on disk, if it can be continued; without notes of this address, or a validator, it cannot."""
    try:
        notes = json.loads(_notes(partial).read_text(encoding="utf-8"))
        if notes["address"] == address and notes["validator"]:
            return _Part(_size(partial), notes["validator"], notes["total"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return _Part()


def _begin(address: str, partial: Path, response: http.client.HTTPResponse) -> _Part:
    """Empty the part, and note which file the server now sends."""
    _discard(partial)
    validator = response.headers.get("ETag") or ""
    if not validator or validator.startswith("W/"):  # a weak tag may stay when bytes change
        validator = response.headers.get("Last-Modified") or ""
    announced = response.headers.get("Content-Length")
    total = int(announced) if announced and announced.isdecimal() else None
    notes = {"address": address, "validator": validator, "total": total}
    write_atomically(_notes(partial), json.dumps(notes))
    return _Part(0, validator, total)


def _continues(response: http.client.HTTPResponse, part: _Part) -> bool:
    """Whether a partial answer begins where the part ends, in a file of the same length and validator."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != part.size:
        return False
    validators = [value for key in ("ETag", "Last-Modified") if (value := response.headers.get(key))]
    same_length = part.total is None or found[2] in ("*", str(part.total))
    return same_length and (not validators or part.validator in validators)


def _discard(partial: Path) -> None:
    with _writing(partial):
        partial.unlink(missing_ok=True)
        _notes(partial).unlink(missing_ok=True)


def _notes(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _writing(path: Path, mode: str = "") -> Iterator[Any]:
    """The file opened in `mode`, if one is given; trouble with the disk is one line."""
    try:
        if not mode:
            yield None
            return
        with path.open(mode) as file:
            yield file
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}; what is there is kept, run again to go on"
        ) from error


def _reason(error: Exception, timeout: float) -> str:
    """Why a connection failed, in a few words."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer for {timeout:g} seconds"
    text = getattr(cause, "strerror", None) or str(cause)
    return " ".join(text.split()) or type(cause).__name__
