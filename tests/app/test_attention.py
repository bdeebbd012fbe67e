"""The tab Attention: exact weights over the network, and a person who clicks, on desktop and phone."""

import base64
import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect
from starlette.testclient import TestClient

from ccsegformer.app.server import create_app
from ccsegformer.app.workspace import Workspace, opened_workspace
from ccsegformer.data.images import read_image
from ccsegformer.labelling.loading import load_model
from ccsegformer.report.attention_maps import attend_image, panels_at
from tests.models.test_modeling import shake, tiny

SIZE = (96, 144)
TIMEOUT = 30_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    root = tmp_path_factory.mktemp("models")
    for name, overrides in {
        "crosses": {"attention": "criss_cross", "depths": (2, 1, 1, 1)},
        "mixed": {"attention": ["efficient", "criss_cross", "none", "efficient"]},
    }.items():
        model = tiny(**overrides).eval()
        shake(model, 0.3)
        model.save_pretrained(root / name)
    with opened_workspace([root / "crosses", root / "mixed"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(workspace: Workspace) -> Iterator[TestClient]:
    with TestClient(create_app(workspace), base_url="http://127.0.0.1") as client:
        yield client


def picture(height: int, width: int) -> bytes:
    """Return a PNG of random blocks."""
    blocks = np.random.default_rng(4).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def finished(client: TestClient, image: str, models: list[int]) -> dict[str, Any]:
    answer = client.post("/api/attention/jobs", json={"image": image, "models": models})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    while job["state"] in ("waiting", "running"):
        job = client.get(f"/api/jobs/{job['key']}", params={"seen": job["version"]}).json()
    return job


def uploaded(client: TestClient, content: bytes) -> str:
    answer = client.post("/api/label/images?name=blocks.png", content=content)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["key"])


def test_the_weights_are_exactly_those_of_the_model(
    client: TestClient, workspace: Workspace, tmp_path: Path
) -> None:
    content = picture(*SIZE)
    (tmp_path / "blocks.png").write_bytes(content)
    job = finished(client, uploaded(client, content), [0, 1])
    assert job["state"] == "done", job
    assert (
        job["result"]["size"] == list(SIZE) and job["result"]["stages"] == 4 and job["result"]["note"] == ""
    )
    address = f"/api/attention/records/{job['key']}"
    for number, name in enumerate(("crosses", "mixed")):
        model, _ = load_model(workspace.models[number].source)
        applications = attend_image(model, read_image(tmp_path / "blocks.png"))
        for stage in range(4):
            found = client.get(f"{address}/weights", params={"stage": stage, "x": 100, "y": 40}).json()
            assert found["pixel"] == [40, 100] and found["models"][number]["name"] == name
            expected = panels_at(applications, stage, (40, 100), SIZE)
            for sent, panel in zip(found["models"][number]["panels"], expected, strict=True):
                assert (sent["title"], sent["position"]) == (panel.title, list(panel.position))
                for field in ("row", "column", "weights"):
                    exact = getattr(panel, field)
                    assert (sent[field] is None) == (exact is None)
                    if exact is not None:
                        read = np.frombuffer(base64.b64decode(sent[field]), "<f4")
                        np.testing.assert_array_equal(read, exact.ravel())
    shown = client.get(f"{address}/picture.jpg")
    assert shown.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(shown.content)).size == (144, 96)


def test_what_cannot_be_shown_is_said(client: TestClient) -> None:
    image = uploaded(client, picture(*SIZE))
    job = finished(client, image, [0])
    for address, message in (
        (f"{job['key']}/weights?stage=0&x=144&y=0", "pixel 144,0: the image has 144 x 96"),
        ("0/weights?stage=0&x=0&y=0", "no longer kept"),
        ("0/picture.jpg", "no longer kept"),
    ):
        answer = client.get(f"/api/attention/records/{address}")
        assert answer.status_code == 422 and message in answer.json()["detail"]
    for wanted, message in (
        ({"image": "none", "models": [0]}, "no longer kept"),
        ({"image": image, "models": [7]}, "there are 2 models"),
    ):
        answer = client.post("/api/attention/jobs", json=wanted)
        assert answer.status_code == 422 and message in answer.json()["detail"]
    small = finished(client, uploaded(client, picture(16, 64)), [0])
    assert small["state"] == "failed" and "blocks.png: 64 x 16 pixels" in small["message"]
    for _ in range(2):
        last = finished(client, image, [1])
    assert client.get(f"/api/attention/records/{job['key']}/picture.jpg").status_code == 422
    assert client.get(f"/api/attention/records/{last['key']}/picture.jpg").status_code == 200


def test_large_images_are_reduced_and_large_scenes_cut(client: TestClient) -> None:
    job = finished(client, uploaded(client, picture(1032, 2064)), [1])
    assert job["result"]["size"] == [512, 1024]
    assert job["result"]["note"] == "Reduced from 2064 × 1032 to 1024 × 512 pixels."
    scene = client.post("/api/label/examples/4").json()
    job = finished(client, scene["key"], [1])
    assert job["result"]["size"] == [1024, 1024]
    assert job["result"]["note"] == "The middle 1024 × 1024 pixels of the scene, from (256, 256)."


@pytest.fixture(scope="module")
def address(workspace: Workspace) -> Iterator[str]:
    """Serve the application on a free port."""
    config = uvicorn.Config(create_app(workspace), port=0, log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        socket.close()


@pytest.fixture(params=[("desktop", "light"), ("phone", "dark")], ids="-".join)
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """Yield a page; the test fails if a script does, or if the page calls another server."""
    form, scheme = request.param
    sizes = {"desktop": (1280, 900), "phone": (390, 844)}
    width, height = sizes[form]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(TIMEOUT)
    problems: list[str] = []
    own = (address, "data:", f"blob:{address}")
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if is_problem(message) else None)
    page.on("request", lambda of: None if of.url.startswith(own) else problems.append(of.url))
    yield page
    page.close()
    assert not problems


def is_problem(message: ConsoleMessage) -> bool:
    """Return whether a message is of an error; a refusal of the server is none."""
    return message.type == "error" and "status of 422" not in message.text


def test_a_pixel_is_clicked_and_shared(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(f"{address}#attention")
    canvases = page.locator(".attention-view canvas")
    canvases.first.wait_for()
    expect(canvases).to_have_count(1)  # stage 3 of the first model; the second has no attention there
    expect(page.get_by_text("No attention in this stage.")).to_be_visible()
    page.get_by_role("button", name="Stage 1").click()
    expect(canvases).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"

    first = canvases.first
    before = first.screenshot()
    box = first.bounding_box()
    assert box is not None
    scale = box["width"] / (512 * 1.2)
    first.click(position={"x": 400.5 * scale, "y": (0.2 * 512 + 300.5) * scale})
    expect(page).to_have_url(re.compile(r"x=(39[89]|40[0-2])&y=(29[89]|30[0-2])&stage=1$"))
    assert first.screenshot() != before
    shared = page.url
    assert "#attention?models=0,1&image=example-0&" in shared
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG").click()
    with Image.open(download.value.path()) as saved:
        assert saved.width > 1000
    after = first.screenshot()

    page.goto("about:blank")
    page.goto(shared)
    canvases.nth(3).wait_for()
    assert page.url == shared
    expect(page.get_by_role("button", name="Stage 1")).to_have_attribute("aria-pressed", "true")
    page.locator(".readout").scroll_into_view_if_needed()
    assert first.screenshot() == after

    page.get_by_role("checkbox", name="mixed").uncheck()
    expect(canvases).to_have_count(3)
    expect(page).to_have_url(re.compile("models=0&"))


def test_an_image_is_uploaded_or_refused(page: Page, address: str) -> None:
    page.goto(f"{address}#attention")
    page.locator(".attention-view canvas").first.wait_for()
    files = page.locator("#attention-file")
    files.set_input_files({"name": "broken.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n" * 8})
    expect(page.get_by_role("alert").filter(has_text="broken.png")).to_be_visible()
    content = picture(*SIZE)
    files.set_input_files({"name": "blocks.png", "mimeType": "image/png", "buffer": content})
    expect(page).to_have_url(re.compile(r"image=\d+&"))
    expect(page.locator("#panel-attention .message.bad")).to_have_count(0)


@torch.no_grad()
def test_the_pointer_reads_the_exact_weight(page: Page, address: str, client: TestClient) -> None:
    page.goto(f"{address}#attention?models=0&image=example-1&x=200&y=120&stage=1")
    canvas = page.locator(".attention-view canvas").first
    canvas.wait_for()
    box = canvas.bounding_box()
    assert box is not None
    scale = box["width"] / (512 * 1.2)
    canvas.hover(position={"x": 402 * scale, "y": (0.2 * 512 + 122) * scale})
    image = client.post("/api/label/examples/1").json()["key"]
    job = finished(client, image, [0])
    found = client.get(f"/api/attention/records/{job['key']}/weights?stage=0&x=200&y=120").json()
    row = np.frombuffer(base64.b64decode(found["models"][0]["panels"][0]["row"]), "<f4")
    said = page.locator(".readout").inner_text()
    weight = float(said.split("weight ")[1].split(",")[0])
    assert weight in [float(f"{float(row[at]):.3g}") for at in (99, 100, 101)], said
