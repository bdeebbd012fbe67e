"""A tiny data set in the form of the official SceneParse150, as files and archive, and a server for it."""

import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAIRS = {"training": 3, "validation": 2}


def encode(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def members() -> dict[str, bytes]:
    """Files by their paths in the archive; every annotation contains raw ids 0 and 150."""
    generator = np.random.default_rng(0)
    files = {
        "ADEChallengeData2016/objectInfo150.txt": b"Idx\tRatio\tTrain\tVal\tName\n",
        "ADEChallengeData2016/sceneCategories.txt": b"ADE_train_00000001 airport\n",
    }
    for split, count in PAIRS.items():
        for number in range(1, count + 1):
            name = f"{split}/ADE_{split[:5].replace('valid', 'val')}_{number:08}"
            image = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            mask = generator.integers(0, 151, (40, 48), dtype=np.uint8)
            mask[0, :2] = 0, 150
            files[f"ADEChallengeData2016/images/{name}.jpg"] = encode(image, "JPEG")
            files[f"ADEChallengeData2016/annotations/{name}.png"] = encode(mask, "PNG")
    return files


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


@pytest.fixture
def archive(tmp_path: Path, members: dict[str, bytes]) -> Path:
    return pack(tmp_path / "ADEChallengeData2016.zip", members)


@pytest.fixture
def official(tmp_path: Path, members: dict[str, bytes]) -> Path:
    """The unpacked data set."""
    for name, content in members.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "ADEChallengeData2016"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep tests away from the user's caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ccsegformer"


Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answer each GET with the next of `answers`, repeating the last, and record the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}/set.zip"
        self.answers: list[Answer] = []
        self.ranges: list[str | None] = []
        self.conditions: list[str | None] = []
        self.closing = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers["Range"])
        self.server.conditions.append(self.headers["If-Range"])
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        answer(self)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()
