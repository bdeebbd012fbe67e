"""Download one large file over HTTP, resuming after a break; never join the parts of two versions."""

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
    """The transfer stopped for a reason that may pass; the message names it."""


class _Part(NamedTuple):
    """The partial file on disk: `size` bytes of the version that the server identified by `validator`."""

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
    """Download `address` to `path`, resuming from `path.partial` if an earlier call left it there.

    A download is resumed only if ETag or Last-Modified shows that the server still has the same file;
    otherwise it starts over. `path` appears once all announced bytes have arrived.

    Args:
        address: HTTP or HTTPS address.
        path: Path of the file, in an existing folder.
        begins: First bytes of a valid file; anything else is refused at once.
        timeout: Seconds without data after which to drop the connection.
        attempts: Consecutive attempts without progress after which to give up.
        pause: Seconds before the second attempt; doubled before each further one.
        on_bytes: Callback taking the bytes on disk and the total, or None if unknown.

    Raises:
        DataError: The server does not answer, refuses, or sends another file.
        OutputError: The file cannot be written, for instance on a full disk. The partial file is kept.
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
                kept = f"; {size:,} bytes are kept in {partial}; run again to resume" if size else ""
                raise DataError(f"{address}: {interruption}{kept}") from interruption
        time.sleep(pause * 2 ** max(failures - 1, 0))
    with _catch_disk_errors(path):
        partial.replace(path)
        _notes_path(partial).unlink(missing_ok=True)


def _attempt(address: str, partial: Path, begins: bytes, timeout: float, on_bytes: OnBytes) -> None:
    """Open one connection and complete the partial file."""
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
            if error.code == 416:  # the partial file is longer than the current one
                _discard(partial)
                raise _Interrupted("the file changed on the server") from error
            if error.code in (408, 429) or error.code >= 500:
                raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
            raise DataError(f"{address}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_connection_reason(error, timeout)) from error
    with response:
        chunks = _chunks(response, timeout)
        if response.status == 206:
            if not _continues(response, part):
                _discard(partial)
                raise _Interrupted("the server sent a different range than requested")
        else:
            first = next(chunks, b"")
            if not first.startswith(begins[: len(first)]):  # keep the partial file if this is a log-in page
                kind = response.headers.get_content_type()
                raise DataError(f"{address}: the server sent a different file, of type {kind}")
            part, chunks = _begin(address, partial, response), chain([first], chunks)
        if part.total is not None:
            require_space(partial.parent, part.total - part.size)
        with _catch_disk_errors(partial, "ab") as file:
            for chunk in chunks:
                file.write(chunk)
                part = part._replace(size=part.size + len(chunk))
                on_bytes(part.size, part.total)
    if part.total is not None and part.size != part.total:
        raise _Interrupted(f"the connection broke off after {part.size:,} of {part.total:,} bytes")


def _chunks(response: http.client.HTTPResponse, timeout: float) -> Iterator[bytes]:
    """Yield the data as it arrives."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(_connection_reason(error, timeout)) from error
        if not chunk:
            return
        yield chunk


def _part(partial: Path, address: str) -> _Part:
    """Return the partial file if it can be resumed, which takes notes with this address and a validator."""
    try:
        notes = json.loads(_notes_path(partial).read_text(encoding="utf-8"))
        if notes["address"] == address and notes["validator"]:
            return _Part(_file_size(partial), notes["validator"], notes["total"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return _Part()


def _begin(address: str, partial: Path, response: http.client.HTTPResponse) -> _Part:
    """Delete the partial file and note which version the server sends now."""
    _discard(partial)
    validator = response.headers.get("ETag") or ""
    if not validator or validator.startswith("W/"):  # a weak tag may survive a change
        validator = response.headers.get("Last-Modified") or ""
    announced = response.headers.get("Content-Length")
    total = int(announced) if announced and announced.isdecimal() else None
    notes = {"address": address, "validator": validator, "total": total}
    write_atomically(_notes_path(partial), json.dumps(notes))
    return _Part(0, validator, total)


def _continues(response: http.client.HTTPResponse, part: _Part) -> bool:
    """Whether a partial response continues the partial file, with the same length and validator."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != part.size:
        return False
    validators = [value for key in ("ETag", "Last-Modified") if (value := response.headers.get(key))]
    same_length = part.total is None or found[2] in ("*", str(part.total))
    return same_length and (not validators or part.validator in validators)


def _discard(partial: Path) -> None:
    with _catch_disk_errors(partial):
        partial.unlink(missing_ok=True)
        _notes_path(partial).unlink(missing_ok=True)


def _notes_path(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _catch_disk_errors(path: Path, mode: str = "") -> Iterator[Any]:
    """Open the file if there is a `mode`, and turn disk errors into one line."""
    try:
        if not mode:
            yield None
            return
        with path.open(mode) as file:
            yield file
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}; run again to resume"
        ) from error


def _connection_reason(error: Exception, timeout: float) -> str:
    """Return why a connection failed, in a few words."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer for {timeout:g} seconds"
    text = getattr(cause, "strerror", None) or str(cause)
    return " ".join(text.split()) or type(cause).__name__
