"""Write files that appear whole or not at all."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from ccsegformer.errors import OutputError


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to a temporary file next to `path`, then rename it into place.

    A reader finds the old file or the whole new one, and a failure leaves nothing behind. Missing folders are
    created.

    Raises:
        OutputError: the file cannot be written; the message names it and the reason, such as a full disk.
    """
    with written_aside(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def check_writable(path: str | Path) -> None:
    """Check, before long work, that a file can be written. Missing folders are not created yet.

    Raises:
        OutputError: `path` is a folder, or its folder cannot be written to.
    """
    path = Path(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file")
    if not folder.is_dir():
        raise OutputError(f"{path}: cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: cannot be written: no permission to write to {folder}")


def digest_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, size: int) -> None:
    """Check that `size` more bytes fit on the disk of `folder`, which need not exist yet.

    Raises:
        OutputError: they do not; the message says how many are needed and free.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise OutputError(
            f"{folder}: {size / 1e6:,.0f} MB are needed, but only {free / 1e6:,.0f} MB are free"
        )


@contextmanager
def written_aside(path: str | Path, companions: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it into place on success, delete it on failure.

    The temporary file is hidden and has the same suffix. This is for libraries that write files themselves:
    companion files whose names begin with the temporary name are deleted in any case. Files named `path` and
    one of `companions`, which belong to the file that is replaced, are removed with it.

    Raises:
        OutputError: as `write_atomically`, for any OSError in the `with` block.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("r+b") as file:
                os.fsync(file.fileno())  # a full disk must be noticed before the old file is replaced
            for ending in companions:
                path.with_name(path.name + ending).unlink(missing_ok=True)
            partial.replace(path)
        finally:
            for left in path.parent.glob(f"{escape(partial.name)}*"):
                left.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def folder_written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a new folder next to `path`; rename it to `path` on success, delete it on failure.

    Raises:
        OutputError: `path` exists and is no empty folder, or an OSError in the `with` block.
    """
    path = Path(path).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(f"{path}: exists; choose another folder")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
