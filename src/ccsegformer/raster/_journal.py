"""What a run has done so far, in a folder beside its output, so that a killed run can be continued.

Nothing in it is ever half-written and believed: a window's scores go to files of their own, and only then
does `progress.json` count the window. What a window needs to be done again is still there until then, since
rows of windows, and windows, write alternately to two sets of files.
"""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ccsegformer.errors import OutputError
from ccsegformer.files import write_atomically


class Progress(NamedTuple):
    """How many windows are done, and how many pixels with data were in what is final of them."""

    windows: int = 0
    pixels: int = 0


def folder_for(output: Path) -> Path:
    """Where the unfinished run of an output is."""
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
    """How far the run in a folder came; nothing where it was another job's."""
    try:
        if json.loads((folder / "job.json").read_text(encoding="utf-8")) == job:
            return Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    return Progress()


def begin(folder: Path, job: dict[str, Any]) -> None:
    """Empty the folder for a job; `write_progress` makes it one that can be continued."""
    discard(folder)
    folder.mkdir()
    write_atomically(folder / "job.json", json.dumps(job))


def write_progress(folder: Path, progress: Progress) -> None:
    """Count windows as done."""
    write_atomically(folder / "progress.json", json.dumps(progress._asdict()))


def discard(folder: Path) -> None:
    """Remove the folder; stopped on the way, it holds nothing that could be continued."""
    (folder / "progress.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def save_scores(path: Path, scores: Tensor | None) -> None:
    """Store scores, float32 of any shape, or that there are none."""
    if scores is None or scores.numel() == 0:
        path.unlink(missing_ok=True)
        return
    buffer = io.BytesIO()
    np.save(buffer, scores.cpu().numpy())
    write_atomically(path, buffer.getvalue())


def load_scores(path: Path, device: torch.device) -> Tensor | None:
    """The same scores."""
    return torch.from_numpy(np.load(path)).to(device) if path.exists() else None
