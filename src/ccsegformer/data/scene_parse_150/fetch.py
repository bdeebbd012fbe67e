"""Download or take the official SceneParse150 archive, check it, and unpack it completely or not at all."""

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
    """Unpack the official SceneParse150 into `output`, for `open_dataset("scene_parse_150")`.

    `output` appears once every file is unpacked, its checksum is right and every image has its annotation.
    After a break, the next call resumes the download where it stopped and restarts the unpacking. Temporary
    files lie next to `output`: `.NAME.zip`, `.NAME.zip.partial` and `.NAME.partial`.

    Args:
        output: Folder that does not exist, is empty, or already holds the data set; by default in the user's
            cache.
        archive: Local copy of the archive, which is only read.
        address: Address of the archive.
        pairs: Number of annotated images in each split.
        timeout: Seconds without data after which to drop a connection.
        pause: Seconds before reconnecting; see `download`.
        progress: Whether to show a progress bar if stderr is a terminal.

    Returns:
        The folder.

    Raises:
        DataError: The archive cannot be downloaded, is damaged or unsafe, or is a different one.
        OutputError: `output` holds something else or cannot be written, or another process is writing it.
    """
    output = user_cache_folder() / NAME if output is None else Path(output).resolve()
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
                    fetched.unlink()  # or every later run would fail on it again
                    raise DataError(
                        f"{address}: {error}; the download was deleted, run again to repeat it"
                    ) from error
            fetched.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error
    try:
        write_atomically(_location_file(), f"{output}\n")
    except OutputError as error:
        raise OutputError(f"{output}: complete, but its location cannot be saved: {error}") from error
    return output


def fetched_folder() -> Path:
    """Return the folder named "scene_parse_150": the one fetched last.

    Raises:
        DataError: Nothing was fetched, or the folder is gone.
    """
    try:
        folder = Path(_location_file().read_text(encoding="utf-8").removesuffix("\n"))
    except OSError:
        raise DataError(f"{NAME}: not fetched yet; fetch it with '{COMMAND}'") from None
    if not folder.is_dir():
        raise DataError(f"{NAME}: was fetched to {folder}, which no longer exists; run '{COMMAND}'")
    return folder


def user_cache_folder() -> Path:
    """Return the user's cache folder for ccsegformer, in `$XDG_CACHE_HOME` or else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "ccsegformer"


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep other processes from fetching to the same folder at the same time."""
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


def _location_file() -> Path:
    return user_cache_folder() / f"{NAME}.location"


def _holds_the_set(output: Path, pairs: Mapping[str, int]) -> bool:
    """Whether the folder already holds the whole data set.

    Raises:
        OutputError: It holds something else.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is not a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return False
    if not (output / LISTING).is_file():
        raise OutputError(f"{output}: is not empty and does not hold SceneParse150; choose another folder")
    try:
        check_pairs((path.relative_to(output).as_posix() for path in output.glob("*/*/*")), pairs)
    except DataError as error:
        raise OutputError(f"{output}: holds an incomplete SceneParse150 ({error}); delete it first") from None
    return True


def _download(address: str, fetched: Path, timeout: float, pause: float, bar: Progress) -> None:
    """Download the archive unless an earlier, unfinished run already did."""
    if not fetched.exists():
        task = bar.add_task("Downloading", total=None)
        show = partial(_show, bar, task)
        download(address, fetched, begins=b"PK", timeout=timeout, pause=pause, on_bytes=show)


def _unpack_aside(archive: Path, output: Path, pairs: Mapping[str, int], bar: Progress) -> None:
    """Unpack into a temporary folder and move it into place. The temporary folder is always deleted."""
    aside = output.with_name(f".{output.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # left by a killed run
    try:
        unpack(archive, aside, pairs, partial(_show, bar, bar.add_task("Unpacking", total=None)))
        with suppress(FileNotFoundError):
            output.rmdir()  # it is empty
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _progress_bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))


def _show(bar: Progress, task: int, size: int, total: int | None) -> None:
    bar.update(task, completed=size, total=total)  # type: ignore[arg-type]
