import errno
import json
import shutil
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ccsegformer.data import download as module
from ccsegformer.data.download import download
from ccsegformer.errors import DataError, OutputError

CONTENT = b"PK" + bytes(range(256)) * 40
OTHER = b"PK" + bytes(reversed(range(256))) * 40
Answer = Callable[[BaseHTTPRequestHandler], None]


def sends(
    content: bytes = CONTENT,
    *,
    upto: int | None = None,
    tag: str | None = '"1"',
    ranges: bool = True,
    announced: int | None = 0,
    stall: bool = False,
    **headers: str,
) -> Answer:
    """Send `content` like a server that supports If-Range, but close the connection at byte `upto`."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        start, asked = 0, request.headers["Range"]
        if ranges and asked and request.headers["If-Range"] == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if tag:
            request.send_header("ETag", tag)
        if announced is not None:
            request.send_header("Content-Length", str(announced or len(content) - start))
        for key, value in headers.items():
            request.send_header(key.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(content[start:upto])
        if stall:
            request.wfile.flush()
            request.server.closing.wait(30)  # type: ignore[attr-defined]

    return answer


def fails(code: int) -> Answer:
    return lambda request: request.send_error(code)


def get(server: Any, path: Path, **options: Any) -> bytes:
    options = {"begins": b"PK", "timeout": 5, "attempts": 3, "pause": 0} | options
    download(server.address, path, **options)
    assert [left.name for left in path.parent.iterdir() if left.name.startswith(path.name)] == [path.name]
    return path.read_bytes()


def refused(server: Any, path: Path, error: type[Exception] = DataError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        get(server, path, **options)
    assert not path.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_file_arrives_whole(server: Any, tmp_path: Path) -> None:
    server.answers = [sends()]
    seen: list[tuple[int, int | None]] = []
    assert get(server, tmp_path / "a", on_bytes=lambda *state: seen.append(state)) == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_broken_connection_is_taken_up_where_it_broke(server: Any, tmp_path: Path) -> None:
    server.answers = [sends(upto=3000), sends(upto=7000), sends()]
    assert get(server, tmp_path / "a") == CONTENT
    assert server.ranges == [None, "bytes=3000-", "bytes=7000-"]
    assert server.conditions == [None, '"1"', '"1"'], "without them a changed file would be sent in part"


def test_progress_is_patience(server: Any, tmp_path: Path) -> None:
    """The server breaks off more often than there are attempts, but sends something every time."""
    server.answers = [*(sends(upto=1000 * part) for part in range(1, 10)), sends()]
    assert get(server, tmp_path / "a", attempts=2) == CONTENT


def test_a_later_run_goes_on(server: Any, tmp_path: Path) -> None:
    server.answers = [sends(upto=4000)]
    message = refused(server, tmp_path / "a")
    assert message == (
        f"{server.address}: the connection broke off after 4,000 of {len(CONTENT):,} bytes; "
        f"4,000 bytes are kept in {tmp_path / 'a.partial'}; run again to resume"
    )
    server.answers = [sends()]
    assert get(server, tmp_path / "a") == CONTENT
    assert server.ranges[-1] == "bytes=4000-"


def test_a_part_that_is_already_whole_needs_no_connection(server: Any, tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_bytes(CONTENT)
    notes = {"address": server.address, "validator": '"1"', "total": len(CONTENT)}
    (tmp_path / "a.partial.json").write_text(json.dumps(notes))
    assert get(server, tmp_path / "a") == CONTENT
    assert server.ranges == []


def test_a_server_that_ignores_ranges_begins_again(server: Any, tmp_path: Path) -> None:
    server.answers = [sends(upto=3000), sends(ranges=False)]
    assert get(server, tmp_path / "a") == CONTENT


def test_a_changed_file_is_never_glued_to_an_old_part(server: Any, tmp_path: Path) -> None:
    server.answers = [sends(upto=3000), sends(OTHER, tag='"2"')]
    assert get(server, tmp_path / "a") == OTHER
    # A server may ignore If-Range and send a part of the new file.
    server.answers = [sends(upto=3000), ignores_if_range(OTHER, '"2"'), sends(OTHER, tag='"2"')]
    assert get(server, tmp_path / "b") == OTHER
    server.answers = [sends(upto=3000), ignores_if_range(OTHER + b"!", None), sends(OTHER + b"!", tag=None)]
    assert get(server, tmp_path / "longer") == OTHER + b"!"
    assert server.ranges[-3:] == [None, "bytes=3000-", None]
    # Or nothing may tell one file from another.
    server.answers = [sends(upto=3000, tag=None), sends(OTHER, tag=None)]
    assert get(server, tmp_path / "c") == OTHER
    assert server.ranges[-1] is None


def ignores_if_range(content: bytes, tag: str | None) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        if tag:
            request.send_header("ETag", tag)
        request.end_headers()
        request.wfile.write(content[start:])

    return answer


def test_last_modified_serves_where_there_is_no_strong_tag(server: Any, tmp_path: Path) -> None:
    date = "Wed, 01 Jan 2020 00:00:00 GMT"
    server.answers = [sends(upto=3000, tag='W/"1"', Last_Modified=date), sends(tag=date)]
    assert get(server, tmp_path / "a") == CONTENT
    assert server.ranges[-1] == "bytes=3000-" and server.conditions[-1] == date


def test_another_address_is_another_file(server: Any, tmp_path: Path) -> None:
    server.answers = [sends(upto=3000)]
    refused(server, tmp_path / "a")
    server.address, server.answers = server.address + "2", [sends(OTHER)]
    assert get(server, tmp_path / "a") == OTHER
    assert server.ranges[-1] is None


def test_a_stall_ends_in_one_line(server: Any, tmp_path: Path) -> None:
    server.answers = [sends(upto=3000, stall=True)]
    message = refused(server, tmp_path / "a", timeout=2, attempts=1)  # long enough for a busy machine
    assert "no answer for 2 seconds; 3,000 bytes are kept" in message
    server.answers = [sends()]
    assert get(server, tmp_path / "a") == CONTENT
    assert server.ranges[-1] == "bytes=3000-"


def test_a_connection_kept_open_is_not_waited_for(server: Any, tmp_path: Path) -> None:
    server.answers = [sends(stall=True)]
    assert get(server, tmp_path / "a", timeout=5, attempts=1) == CONTENT


def test_a_length_too_long_is_noticed(server: Any, tmp_path: Path) -> None:
    server.answers = [sends(announced=20_000, ranges=False)]
    message = refused(server, tmp_path / "a")
    assert f"the connection broke off after {len(CONTENT):,} of 20,000 bytes; " in message


def test_a_length_too_short_ends_there(server: Any, tmp_path: Path) -> None:
    """A truncated archive is noticed when it is opened."""
    server.answers = [sends(announced=5000)]
    assert get(server, tmp_path / "a") == CONTENT[:5000]


def test_without_a_length_the_end_is_the_end(server: Any, tmp_path: Path) -> None:
    server.answers = [sends(announced=None)]
    assert get(server, tmp_path / "a") == CONTENT


def test_a_web_page_is_refused_at_once(server: Any, tmp_path: Path) -> None:
    page = sends(b"<html>Log in first</html>", tag=None, Content_Type="text/html; charset=utf-8")
    server.answers = [page]
    message = refused(server, tmp_path / "a")
    assert message == f"{server.address}: the server sent a different file, of type text/html"
    assert len(server.ranges) == 1
    assert not list(tmp_path.iterdir())
    # The partial file is kept.
    server.answers = [sends(upto=3000), page]
    assert refused(server, tmp_path / "a") == message
    server.answers = [sends()]
    assert get(server, tmp_path / "a") == CONTENT
    assert server.ranges[-1] == "bytes=3000-"


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_refusals_are_final_and_overload_is_not(
    server: Any, tmp_path: Path, code: int, requests: int
) -> None:
    server.answers = [fails(code)]
    assert f"the server answered {code} " in refused(server, tmp_path / "a")
    assert len(server.ranges) == requests


def test_a_part_longer_than_the_file_begins_again(server: Any, tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_bytes(CONTENT * 2)
    notes = {"address": server.address, "validator": '"1"', "total": None}
    (tmp_path / "a.partial.json").write_text(json.dumps(notes))
    server.answers = [fails(416), sends()]
    assert get(server, tmp_path / "a") == CONTENT


def test_no_server_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:1/x: Connection refused$"):
        download("http://127.0.0.1:1/x", tmp_path / "a", attempts=2, pause=0)


def test_a_disk_without_room_is_known_beforehand(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5000}))
    server.answers = [sends()]
    assert "only 0 MB are free" in refused(server, tmp_path / "a", OutputError)


def test_a_disk_that_fills_up_keeps_the_part(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 1000)
    server.answers = [sends()]

    def full(size: int, _: int | None) -> None:
        if size >= 3000:
            raise OSError(errno.ENOSPC, "No space left on device")

    message = refused(server, tmp_path / "a", OutputError, on_bytes=full)
    assert message.startswith(
        f"{tmp_path / 'a.partial'}: cannot be written: No space left on device; run again"
    )
    kept = (tmp_path / "a.partial").stat().st_size
    assert 3000 <= kept <= 4000
    assert get(server, tmp_path / "a") == CONTENT
    assert server.ranges[-1] == f"bytes={kept}-"
