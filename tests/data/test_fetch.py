"""Fetch the tiny data set from misbehaving servers and bad archives."""

import errno
import io
import shutil
import stat
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ccsegformer.data.scene_parse_150 import _archive as archives
from ccsegformer.data.scene_parse_150 import fetch as module
from ccsegformer.data.scene_parse_150.fetch import ADDRESS, PAIRS, fetch_scene_parse_150, fetched_folder
from ccsegformer.errors import DataError, OutputError
from ccsegformer.sources import open_dataset

FEW = {"training": 3, "validation": 2}
Files = dict[str, bytes]
TOP = "ADEChallengeData2016"


def fetch(output: Path, **options: Any) -> Path:
    return fetch_scene_parse_150(
        output, **{"pairs": FEW, "progress": False, "timeout": 5, "pause": 0} | options
    )


def refused(output: Path, error: type[Exception] = DataError, **options: Any) -> str:
    """Return the one-line error of a fetch that leaves no data set behind."""
    with pytest.raises(error) as caught:
        fetch(output, **options)
    assert not output.exists()
    assert not output.with_name(f".{output.name}.partial").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_is_the_set(output: Path, members: Files) -> None:
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert {f"{TOP}/{name}": (output / name).read_bytes() for name in found} == members
    assert not list(output.parent.glob(f".{output.name}*")), "nothing is left beside it"


def pack(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # with a fixed date
    return path


def serve(server: Any, content: bytes, kind: str = "application/zip") -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        start = int((request.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("ETag", '"1"')
        request.send_header("Content-Length", str(len(content) - start))
        request.send_header("Content-Type", kind)
        request.end_headers()
        request.wfile.write(content[start:])

    server.answers = [answer]


def test_the_official_set_is_what_is_fetched() -> None:
    assert ADDRESS.endswith("/ADEChallengeData2016.zip")
    assert PAIRS == {"training": 20210, "validation": 2000}


def test_from_the_server_to_a_data_set(server: Any, archive: Path, members: Files, tmp_path: Path) -> None:
    serve(server, archive.read_bytes())
    output = tmp_path / "new" / "set"
    assert fetch(output, address=server.address) == output
    assert_is_the_set(output, members)
    for split, count in FEW.items():
        assert len(open_dataset("scene_parse_150", split)) == count
    assert fetch(output, address=server.address) == output
    assert len(server.ranges) == 1, "a set that is there is not fetched again"


def test_an_archive_at_hand_is_only_read(archive: Path, members: Files, tmp_path: Path) -> None:
    content = archive.read_bytes()
    (tmp_path / "set").mkdir()
    fetch(tmp_path / "set", archive=archive)
    assert_is_the_set(tmp_path / "set", members)
    assert archive.read_bytes() == content


def test_the_default_is_the_users_cache(archive: Path, members: Files, own_cache: Path) -> None:
    output = fetch_scene_parse_150(archive=archive, pairs=FEW, progress=False)
    assert output == own_cache / "scene_parse_150" == fetched_folder()
    assert_is_the_set(output, members)


def test_the_name_opens_what_was_fetched_last(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not fetched yet; fetch it with 'ccsegformer data scene-parse"):
        open_dataset("scene_parse_150", "validation")
    for name in ("a", "b", "a"):
        fetch(tmp_path / name, archive=archive)
        assert fetched_folder() == tmp_path / name
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(DataError, match=r"scene_parse_150: was fetched to .*/a, which no longer exists; run"):
        open_dataset("scene_parse_150", "validation")


def test_files_of_a_desktop_are_passed_over(archive: Path, members: Files, tmp_path: Path) -> None:
    others = {f"{TOP}/.DS_Store": b"", f"__MACOSX/{TOP}/._images": b"", f"{TOP}/images/training/._x.jpg": b""}
    fetch(tmp_path / "set", archive=pack(archive, {f"{TOP}/images/": b"", **members, **others}))
    assert_is_the_set(tmp_path / "set", members)


def without(*names: str) -> Callable[[Files], Files]:
    return lambda files: {name: content for name, content in files.items() if name not in names}


def plus(name: str, content: bytes = b"x") -> Callable[[Files], Files]:
    return lambda files: files | {name: content}


VALIDATION = [f"{TOP}/{kind}/validation/ADE_val_00000002{end}" for kind, end in archives.KINDS.items()]
MASK = f"{TOP}/annotations/training/ADE_train_00000002.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(MASK), "training: ADE_train_00000002 has no annotation"),
        (without(MASK.replace("annotations", "images").replace("png", "jpg")), "00000002 has no image"),
        (
            without(f"{TOP}/objectInfo150.txt"),
            f"another archive, not SceneParse150: no {TOP}/objectInfo150.txt, only {TOP}",
        ),
        (lambda files: {}, "another archive, not SceneParse150: .* only nothing at all"),
        (lambda files: {"ADE20K_2021_17_01/index.mat": b""}, "full ADE20K, not SceneParse150"),
        (plus("../evil"), r"unsafe: '\.\./evil' points outside the folder"),
        (plus(f"{TOP}/images/training/../../../../evil.jpg"), "points outside the folder"),
        (plus("/etc/evil"), "unsafe: '/etc/evil' points outside the folder"),
        (plus(f"{TOP}\\..\\..\\evil"), "points outside the folder"),
        (plus("C:/evil"), "points outside the folder"),
        (plus("evil\x1b[2J"), r"unsafe: 'evil\\x1b\[2J' is not a printable name"),
    ],
)
def test_another_or_a_malicious_archive_is_one_line(
    archive: Path, members: Files, tmp_path: Path, change: Callable[[Files], Files], message: str
) -> None:
    pack(archive, change(members))
    with pytest.raises(DataError, match=message) as caught:
        fetch(tmp_path / "deep" / "down" / "set", archive=archive)
    assert str(caught.value).startswith(f"{archive}: ")
    assert not (tmp_path / "deep" / "down" / "set").exists()
    assert not list(tmp_path.rglob("evil*"))


def test_a_set_of_another_size_is_named(archive: Path, members: Files, tmp_path: Path) -> None:
    pack(archive, without(*VALIDATION)(members))
    message = refused(tmp_path / "set", archive=archive)
    assert message == f"{archive}: validation: 1 annotated images instead of 2"


def test_links_twins_and_bombs_are_refused(
    archive: Path, members: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = zipfile.ZipInfo(f"{TOP}/images/training/link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(link, "/etc/passwd")
    assert "link.jpg' is a link" in refused(tmp_path / "set", archive=archive)
    pack(archive, members)
    with zipfile.ZipFile(archive, "a") as opened, pytest.warns(UserWarning, match="Duplicate name"):
        opened.writestr(MASK, b"another")
    assert f"'{MASK}' occurs twice" in refused(tmp_path / "set", archive=archive)
    pack(archive, members)
    monkeypatch.setattr(archives, "MOST_BYTES", 10_000)
    assert "unsafe: it unpacks to more than" in refused(tmp_path / "set", archive=archive)
    monkeypatch.setattr(archives, "MOST_BYTES_OF_A_FILE", 1000)
    assert "_00000001.jpg' has " in refused(tmp_path / "set", archive=archive)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 and no more", b"<html></html>"])
def test_what_is_no_archive_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.zip").write_bytes(content)
    message = refused(tmp_path / "set", archive=tmp_path / "file.zip")
    assert message.startswith(f"{tmp_path / 'file.zip'}: not a whole zip archive: ")
    assert (
        refused(tmp_path / "set", archive=tmp_path / "none.zip") == f"{tmp_path / 'none.zip'}: no such file"
    )
    assert refused(tmp_path / "set", archive=tmp_path) == f"{tmp_path}: no such file"


PLACES = st.integers(1, 1500) | st.integers(1, 20_000)  # the listing is at the end of an archive


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.none() | PLACES,
    changes=st.lists(
        st.tuples(st.integers(1, 1500) | st.integers(1, 20_000), st.integers(0, 255)), max_size=3
    ),
)
def test_no_damage_goes_unnoticed(
    archive: Path,
    tmp_path_factory: pytest.TempPathFactory,
    cut: int | None,
    changes: list[tuple[int, int]],
) -> None:
    """Change or cut off bytes, counted from the end: the data set is complete or one line says why."""
    folder = tmp_path_factory.mktemp("damage")
    content = bytearray(archive.read_bytes())
    for place, value in changes:
        content[-place % len(content)] = value
    (folder / "a.zip").write_bytes(content[: -cut if cut else None])
    try:
        fetch(folder / "set", archive=folder / "a.zip")
    except DataError as error:
        assert str(error).startswith(f"{folder / 'a.zip'}: ") and str(error).isprintable()
        assert not (folder / "set").exists()
    else:
        with zipfile.ZipFile(archive) as whole:
            files = {name: whole.read(name) for name in whole.namelist()}
        if not (folder / "set" / "sceneCategories.txt").exists():  # the only file that nothing reads
            del files[f"{TOP}/sceneCategories.txt"]
        assert_is_the_set(folder / "set", files)
    assert not list(folder.glob(".set.*partial"))


def test_another_zip_from_the_server_is_not_kept(
    server: Any, archive: Path, members: Files, tmp_path: Path
) -> None:
    serve(server, pack(tmp_path / "other.zip", {"readme.txt": b"something else"}).read_bytes())
    message = refused(tmp_path / "set", address=server.address)
    assert message.startswith(f"{server.address}: ") and message.endswith(
        "the download was deleted, run again to repeat it"
    )
    assert "not SceneParse150" in message and "readme.txt" in message
    assert not (tmp_path / ".set.zip").exists()
    serve(server, archive.read_bytes())
    fetch(tmp_path / "set", address=server.address)
    assert_is_the_set(tmp_path / "set", members)


def test_a_web_page_from_the_server_is_named(server: Any, tmp_path: Path) -> None:
    serve(server, b"<html>", "text/html")
    assert refused(tmp_path / "set", address=server.address).endswith(
        "sent a different file, of type text/html"
    )


def test_an_output_with_other_things_is_left_alone(archive: Path, members: Files, tmp_path: Path) -> None:
    output = tmp_path / "set"
    output.write_text("a file")
    with pytest.raises(OutputError, match="set: is not a folder"):
        fetch(output, archive=archive)
    output.unlink()
    output.mkdir()
    (output / "thesis.txt").write_text("precious")
    with pytest.raises(
        OutputError, match="set: is not empty and does not hold SceneParse150; choose another"
    ):
        fetch(output, archive=archive)
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]
    (output / "thesis.txt").unlink()
    fetch(output, archive=archive)
    (output / "annotations/training/ADE_train_00000002.png").unlink()
    with pytest.raises(OutputError, match=r"ADE_train_00000002 has no annotation.*; delete it first"):
        fetch(output, archive=archive)


def test_two_runs_do_not_meet(archive: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".set.lock", is_singleton=False):
        assert refused(tmp_path / "set", OutputError, archive=archive).endswith(
            "another process is fetching it"
        )


def test_a_folder_that_cannot_be_written_is_one_line(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written: "):
        fetch(tmp_path / "file" / "set", archive=archive)


def test_a_cache_that_cannot_be_written_is_told(
    archive: Path, members: Files, tmp_path: Path, own_cache: Path
) -> None:
    own_cache.parent.write_text("in the way")
    with pytest.raises(
        OutputError, match=r"set: complete, but its location cannot be saved: .*scene_parse_150\.loc"
    ):
        fetch(tmp_path / "set", archive=archive)
    assert_is_the_set(tmp_path / "set", members)


def test_a_disk_without_room_is_known_beforehand(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 9_000_000_000}))
    fetch(tmp_path / "set", archive=archive)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 30_000}))
    assert "only 0 MB are free" in refused(tmp_path / "b", OutputError, archive=archive)


class FailingFile(io.FileIO):
    """Raise `FailingFile.error` halfway through write number `at`, counted over all files."""

    at, error, writes = 0, OSError(), 0

    def write(self, content: Any) -> int:
        FailingFile.writes += 1
        if FailingFile.writes == FailingFile.at:
            super().write(content[: len(content) // 2])
            raise FailingFile.error
        return super().write(content)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_broken_off_at_any_write_it_goes_on_and_arrives(
    server: Any,
    archive: Path,
    members: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr("ccsegformer.data.download.CHUNK", 4000)
    opened = Path.open

    def failing(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode in ("wb", "xb", "ab"):
            return FailingFile(path, mode)
        return opened(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    FailingFile.error = error
    serve(server, archive.read_bytes())
    for at in range(1, 100):
        output = tmp_path / f"set{at}"
        FailingFile.at, FailingFile.writes = at, 0
        try:
            fetch(output, address=server.address)
            break
        except (OutputError, KeyboardInterrupt) as raised:
            assert isinstance(raised, KeyboardInterrupt) or "No space left on device" in str(raised)
            if output.exists():  # only its location was still to be written
                assert_is_the_set(output, members)
            assert not output.with_name(f".{output.name}.partial").exists()
        FailingFile.at = 0
        fetch(output, address=server.address)
        assert_is_the_set(output, members)
    assert 15 < at < 99


@pytest.mark.parametrize("step", ["unpack", "rename", "rmdir"])
def test_killed_between_two_steps_it_goes_on(
    server: Any, archive: Path, members: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A killed process cleans nothing up."""
    serve(server, archive.read_bytes())
    output, partial = tmp_path / "set", tmp_path / ".set.partial"

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", lambda *_, **__: None)
        if step == "unpack":
            patch.setattr(module, "unpack", kill)
            partial.mkdir()
            (partial / "half.jpg").write_bytes(b"half")
        else:
            output.mkdir()
            patch.setattr(Path, step, kill)
        with pytest.raises(KeyboardInterrupt):
            fetch(output, address=server.address)
    fetch(output, address=server.address)
    assert_is_the_set(output, members)
    assert len(server.ranges) == 1, "the archive was there already"
