"""Files that appear whole or not at all; nothing but the errors is imported from the package."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from ccsegformer.errors import OutputError


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) beside `path`, then rename it into place; missing folders are made.

    A reader finds the old file or the whole new one, never a part, and nothing is left behind by a failure.

    Raises:
        OutputError: the file cannot be written; the message names it and the reason, such as a full disk.
    """
    with written_aside(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def check_writable(path: str | Path) -> None:
    """Make sure, before long work, that a file may be written; missing folders are not made yet.

    Raises:
        OutputError: it is a folder, or its folder cannot be written.
    """
    path = Path(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file")
    if not folder.is_dir():
        raise OutputError(f"{path}: cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: cannot be written: {folder} may not be changed")


def require_space(folder: Path, size: int) -> None:
    """Check that `size` more bytes fit on the disk of `folder`.

    Raises:
        OutputError: they do not; the message says how many are needed and free.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OutputError(
            f"{folder}: {size / 1e6:,.0f} MB are needed, but only {free / 1e6:,.0f} MB are free"
        )


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Where to write a file so that it appears whole: beside `path`, hidden, with its suffix; then renamed.

    For libraries that write files themselves. What they leave next to it goes with a failure, as they do.

    Raises:
        OutputError: as `write_atomically`, for any OSError on the way.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("r+b") as file:
                os.fsync(file.fileno())  # a full disk must be noticed before the old file is replaced
            partial.replace(path)
        finally:
            for left in path.parent.glob(f"{escape(partial.name)}*"):
                left.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
