"""What an unfinished run has done so far, in a folder beside its output, so that it can be resumed.

`progress.json` counts a row of windows only after the row's blocks are on disk.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ccsegformer.errors import OutputError
from ccsegformer.files import write_atomically


class Progress(NamedTuple):
    """Rows of windows that are finished, and the pixels with data in them."""

    rows: int = 0
    pixels: int = 0


def folder_for(output: Path) -> Path:
    """Return the folder of an output's unfinished run."""
    return output.with_name(f".{output.name}.partial")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes out of it.

    Raises:
        OutputError: it cannot be made, or another process is at work in it.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"{folder}: another process is at work on the same output") from None
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def read_progress(folder: Path, job: dict[str, Any]) -> Progress:
    """Return how far the run in a folder came; nothing if it was another job's."""
    try:
        if json.loads((folder / "job.json").read_text(encoding="utf-8")) == job:
            return Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    return Progress()


def begin(folder: Path, job: dict[str, Any]) -> None:
    """Empty the folder for a job."""
    discard(folder)
    folder.mkdir()
    write_atomically(folder / "job.json", json.dumps(job))


def write_progress(folder: Path, progress: Progress) -> None:
    """Record progress, whole or not at all."""
    write_atomically(folder / "progress.json", json.dumps(progress._asdict()))


def discard(folder: Path) -> None:
    """Remove the folder. If that is interrupted, nothing that could be resumed is left."""
    (folder / "progress.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
