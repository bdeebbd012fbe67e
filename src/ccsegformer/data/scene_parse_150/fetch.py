"""Fetch SceneParse150: the official archive, or one at hand, checked and unpacked whole or not at all."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ccsegformer.data.download import download
from ccsegformer.data.scene_parse_150._archive import check_pairs, unpack
from ccsegformer.data.scene_parse_150.labels import LISTING
from ccsegformer.errors import DataError, OutputError
from ccsegformer.files import write_atomically

ADDRESS = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
PAIRS = {"training": 20_210, "validation": 2_000}
NAME = "scene_parse_150"
COMMAND = "ccsegformer data scene-parse-150"


def fetch_scene_parse_150(
    output: str | Path | None = None,
    *,
    archive: str | Path | None = None,
    address: str = ADDRESS,
    pairs: Mapping[str, int] = PAIRS,
    timeout: float = 60,
    pause: float = 1,
    progress: bool = True,
) -> Path:
    """Make the folder `output` the official SceneParse150; `open_dataset("scene_parse_150")` then opens it.

    `output` appears when every file is unpacked, its checksum right and its counterpart there. Broken off
    anywhere, the next call goes on: the download where it stopped, the unpacking from its start. While that
    is under way its files are beside `output`: `.NAME.zip`, `.NAME.zip.partial` and `.NAME.partial`.

    Args:
        output: a folder that is not there, is empty, or holds the set already; default: in the user's cache.
        archive: the archive, if it is at hand; it is only read.
        address: of the archive.
        pairs: how many images with annotations each split has.
        timeout: seconds without a byte after which a connection is given up.
        pause: seconds before connecting again, as in `download`.
        progress: whether to show a bar on stderr, if that is a terminal.

    Returns:
        the folder.

    Raises:
        DataError: the archive cannot be fetched, is damaged, unsafe or another one.
        OutputError: `output` holds something else or cannot be written, or another process is at it.
    """
    output = cache_folder() / NAME if output is None else Path(output).resolve()
    fetched = output.with_name(f".{output.name}.zip")
    if archive is not None and not Path(archive).is_file():
        raise DataError(f"{archive}: no such file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _alone(output), _progress_bar(progress) as bar:
            if not _holds_the_set(output, pairs):
                if archive is None:
                    _download(address, fetched, timeout, pause, bar)
                try:
                    _unpack_aside(Path(archive or fetched), output, pairs, bar)
                except DataError as error:
                    if archive is not None:
                        raise
                    fetched.unlink()  # or every further run would meet it again
                    raise DataError(f"{address}: {error}; it is removed, run again to try anew") from error
            fetched.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error
    try:
        write_atomically(_record(), f"{output}\n")
    except OutputError as error:
        raise OutputError(f"{output}: complete, but cannot be opened by name: {error}") from error
    return output


def fetched_folder() -> Path:
    """The folder that "scene_parse_150" stands for: the one fetched last.

    Raises:
        DataError: none was, or it is gone.
    """
    try:
        folder = Path(_record().read_text(encoding="utf-8").removesuffix("\n"))
    except OSError:
        raise DataError(f"{NAME}: not fetched yet; fetch it with '{COMMAND}'") from None
    if not folder.is_dir():
        raise DataError(f"{NAME}: was fetched to {folder}, which is gone; fetch it again with '{COMMAND}'")
    return folder


def cache_folder() -> Path:
    """The user's cache for ccsegformer, in `$XDG_CACHE_HOME`, or in `~/.cache` without one."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "ccsegformer"


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep other processes from fetching to the same folder meanwhile."""
    path = output.with_name(f".{output.name}.lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"{output}: another process is fetching it") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _record() -> Path:
    return cache_folder() / f"{NAME}.location"


def _holds_the_set(output: Path, pairs: Mapping[str, int]) -> bool:
    """Whether the whole set is there already; a folder with anything else is refused."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is not a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return False
    if not (output / LISTING).is_file():
        raise OutputError(f"{output}: is not empty, and holds no SceneParse150; choose another folder")
    try:
        check_pairs((path.relative_to(output).as_posix() for path in output.glob("*/*/*")), pairs)
    except DataError as error:
        raise OutputError(f"{output}: holds an incomplete SceneParse150, {error}; remove it first") from None
    return True


def _download(address: str, fetched: Path, timeout: float, pause: float, bar: Progress) -> None:
    """Download the archive, unless an earlier run did and was broken off later."""
    if not fetched.exists():
        task = bar.add_task("Downloading", total=None)
        show = partial(_show, bar, task)
        download(address, fetched, begins=b"PK", timeout=timeout, pause=pause, on_bytes=show)


def _unpack_aside(archive: Path, output: Path, pairs: Mapping[str, int], bar: Progress) -> None:
    """Unpack aside, then put the folder in its place; nothing is left aside."""
    aside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    try:
        unpack(archive, aside, pairs, partial(_show, bar, bar.add_task("Unpacking", total=None)))
        with suppress(FileNotFoundError):
            output.rmdir()  # an empty one
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _progress_bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))


def _show(bar: Progress, task: int, size: int, total: int | None) -> None:
    bar.update(task, completed=size, total=total)  # type: ignore[arg-type]
