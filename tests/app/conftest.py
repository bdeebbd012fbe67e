"""An application with two tiny models, asked directly or by a browser."""

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, sync_playwright

from ccsegformer.app.server import create_app
from ccsegformer.app.workspace import OpenedModel, Workspace, opened_workspace
from ccsegformer.data.labels import write_classes
from tests.labelling.test_scene import CLASSES, tiny_model, write_scene

ADDRESS = "http://127.0.0.1"
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("first", "second")):
        tiny_model(seed).save_pretrained(folder / name)
        write_classes(CLASSES, folder / name / "classes.json")
    return [folder / "first", folder / "second"]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scene, one below it, and a link that leads out."""
    outside, folder = tmp_path_factory.mktemp("outside"), tmp_path_factory.mktemp("root")
    (folder / "below").mkdir()
    for path in (folder / "scene.tif", folder / "below" / "other.tif", outside / "secret.tif"):
        write_scene(path)
    (folder / "link.tif").symlink_to(outside / "secret.tif")
    (folder / "links").symlink_to(outside)
    (folder / ".hidden.tif").write_bytes((folder / "scene.tif").read_bytes())
    return folder


@pytest.fixture(scope="session")
def opened_models(model_folders: list[Path]) -> tuple[OpenedModel, ...]:
    with opened_workspace(model_folders) as opened:
        return opened.models


@pytest.fixture
def workspace(opened_models: tuple[OpenedModel, ...], root: Path, tmp_path: Path) -> Iterator[Workspace]:
    opened = Workspace(opened_models, tmp_path / "temporary", root)
    yield opened
    opened.queue.close()


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    return TestClient(create_app(workspace), base_url=ADDRESS)


@pytest.fixture
def finish(client: TestClient) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Wait for the end of a job."""

    def finish(job: dict[str, Any]) -> dict[str, Any]:
        while job["state"] in ("waiting", "running"):
            job = client.get(f"/api/jobs/{job['key']}", params={"seen": job["version"]}).json()
        return job

    return finish


@contextmanager
def served_app(workspace: Workspace) -> Iterator[str]:
    """Serve the application on a free port, and yield its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(workspace), log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "install Chromium, so that `chromium` is on PATH"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield opened
        opened.close()
