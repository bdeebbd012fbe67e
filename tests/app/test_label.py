"""Labels and maps from the tab Label are those of the package, and the map is shown while it grows."""

import io
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from fastapi.testclient import TestClient
from PIL import Image
from pyproj import Transformer

from ccsegformer.app.photographs import label_photograph
from ccsegformer.app.server import create_app
from ccsegformer.app.tiles import EARTH, TILE_SIDE, TileGrid, map_value, tile_grid
from ccsegformer.app.workspace import OpenedModel, Workspace
from ccsegformer.labelling.labeller import predict_labels
from ccsegformer.labelling.scene import predict_scene
from tests.app.conftest import ADDRESS
from tests.labelling.test_scene import CLASSES, write_scene

Finish = Callable[[dict[str, Any]], dict[str, Any]]
PATIENCE = 30.0


def picture_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def upload(client: TestClient, content: bytes, name: str = "a b.png") -> dict[str, Any]:
    return client.post("/api/label/images", params={"name": name}, content=content).json()


def start(client: TestClient, image: dict[str, Any], *models: int) -> dict[str, Any]:
    return client.post("/api/label/jobs", json={"image": image["key"], "models": models}).json()


def noise(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(1).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


def as_bytes(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_photograph_gets_the_labels_of_predict(
    client: TestClient, finish: Finish, opened_models: tuple[OpenedModel, ...]
) -> None:
    pixels = noise(72, 104)
    job = finish(start(client, upload(client, as_bytes(pixels)), 0, 1))
    assert job["state"] == "done", job
    first, second = job["result"]["results"]
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = [predict_labels(model.engine, image).numpy() for model in opened_models]
    for number, labels in enumerate(expected):
        files = f"/api/label/jobs/{job['key']}/{number}/files"
        assert np.array_equal(picture_of(client.get(f"{files}/labels.png").content), labels)
        red, green, sure = np.moveaxis(picture_of(client.get(f"{files}/values.png").content), -1, 0)
        assert np.array_equal(red, labels) and not green.any()
        assert sure.min() >= 255 // 3  # the likeliest of three classes
        assert picture_of(client.get(f"{files}/overlay.png").content).shape == (72, 104, 3)
    assert first["shares"] == pytest.approx(np.bincount(expected[0].ravel(), minlength=3) / 7488, abs=1e-6)
    assert first["seconds"] > 0 and first["memory"] >= 0 and first["window"] is None and second["model"] == 1
    assert job["result"]["agreement"] == pytest.approx((expected[0] == expected[1]).mean())
    name = client.get(f"/api/label/jobs/{job['key']}/0/files/labels.png").headers["content-disposition"]
    assert "a_b_labels.png" in name


def test_probabilities_are_those_of_the_softmax(opened_models: tuple[OpenedModel, ...]) -> None:
    image = torch.from_numpy(noise(64, 96)).permute(2, 0, 1)
    engine = opened_models[0].engine
    logits = engine(engine.preprocessing.apply(image)[None])
    full = torch.nn.functional.interpolate(logits, (64, 96), mode="bilinear").softmax(1)[0]
    found = label_photograph(engine, image, "image")
    assert np.abs(found.probability / 255 - full.amax(0).numpy()).max() <= 0.5 / 255 + 1e-5


def test_a_large_photograph_is_labelled_in_windows(
    opened_models: tuple[OpenedModel, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccsegformer.app import photographs

    monkeypatch.setattr(photographs, "ONE_PIECE_PIXELS", 1000)
    monkeypatch.setattr(photographs, "choose_window", lambda *_: (64, 16))
    image = torch.from_numpy(noise(72, 144)).permute(2, 0, 1)
    shares: list[float] = []
    found = label_photograph(opened_models[0].engine, image, "image", shares.append)
    assert found.window == 64 and shares == sorted(shares) and len(shares) > 3
    whole = predict_labels(opened_models[0].engine, image).numpy()
    assert (found.labels == whole).mean() > 0.8  # windows see less


def test_a_scene_gets_the_map_of_predict_scene(
    client: TestClient, finish: Finish, opened_models: tuple[OpenedModel, ...], root: Path, tmp_path: Path
) -> None:
    image = client.post("/api/label/paths", json={"path": "scene.tif"}).json()
    job = finish(start(client, image, 0))
    assert job["state"] == "done", job
    files = f"/api/label/jobs/{job['key']}/0/files"
    expected = tmp_path / "expected.tif"
    predict_scene(opened_models[0].engine, root / "scene.tif", expected, classes=CLASSES, confidence=True)
    with (
        rasterio.open(expected) as source,
        rasterio.MemoryFile(client.get(f"{files}/map.tif").content) as memory,
    ):
        labels, sure = source.read()
        with memory.open() as found:
            assert np.array_equal(found.read(), source.read()) and found.crs == source.crs
        grid = tile_grid(source)
    counts = np.bincount(labels.ravel(), minlength=3)
    assert job["result"]["results"][0]["shares"] == pytest.approx(counts / counts.sum(), abs=1e-6)
    assert client.get(f"{files}/polygons.gpkg").content.startswith(b"SQLite format 3")
    assert picture_of(client.get(f"{files}/map.png").content).shape == (150, 230, 4)

    # The middle of each pixel, through an independent projection.
    to_mercator = Transformer.from_crs(32632, 3857, always_xy=True)
    for row, column in ((0, 0), (70, 3), (149, 229)):
        east, north = to_mercator.transform(*source.xy(row, column))
        world = TILE_SIDE * 2**grid.zoom
        x, y = (east / EARTH + 0.5) * world, (0.5 - north / EARTH) * world
        value = client.get(f"/api/label/jobs/{job['key']}/0/value", params={"x": x, "y": y}).json()
        assert value["label"] == labels[row, column]
        assert value["probability"] == pytest.approx(sure[row, column] / 254)
        z, tile = grid.zoom, (int(x // TILE_SIDE), int(y // TILE_SIDE))
        for layer in ("map", "polygons"):
            address = f"/api/label/jobs/{job['key']}/0/{layer}/{z}/{tile[0]}/{tile[1]}.png"
            drawn = picture_of(client.get(address).content)
            if layer == "map":
                pixel = drawn[int(y % TILE_SIDE), int(x % TILE_SIDE)]
                assert tuple(pixel) == (*CLASSES.palette[labels[row, column]], 255)
            else:
                assert drawn[..., 3].any()
    for far in ("0/0/0", "9/3/3", f"{grid.zoom}/0/0"):
        for layer in ("map", "polygons"):
            assert client.get(f"/api/label/jobs/{job['key']}/0/{layer}/{far}.png").status_code == 200
    left, top, *_ = grid.bounds
    assert (
        client.get(f"/api/label/jobs/{job['key']}/0/value", params={"x": left - 9, "y": top}).json() is None
    )


def test_a_scene_without_position_is_shown_as_its_pixels_lie(
    client: TestClient, finish: Finish, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).integers(0, 4000, (3, 300, 500)).astype(np.uint16)
    plain: dict[str, Any] = {"height": 300, "width": 500, "transform": None, "crs": None}
    write_scene(tmp_path / "f.tif", data=data.astype(np.float32), dtype="float32", **plain)
    image = upload(client, (tmp_path / "f.tif").read_bytes(), "f.tif")
    assert image["grid"] == {"kind": "pixels", "zoom": 1, "bounds": [0, 0, 500, 300]}
    drawn = picture_of(client.get(f"/api/label/images/{image['key']}/1/0/0.png").content)
    low, high = np.percentile(data[0], (2, 98))
    expected = ((data[0, :256, :256] - low) * 255 / (high - low)).clip(0, 255).round()
    assert np.abs(drawn[..., 0] - expected).max() <= 1
    failed = finish(start(client, image, 0))
    assert failed["state"] == "failed" and "float32 values for a model of 8-bit colours" in failed["message"]


class Slow:
    """An engine's network that waits at a window until it may go on."""

    def __init__(self, model: OpenedModel, at: int) -> None:
        self.run, self.at, self.calls = model.engine.run, at, 0
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.at:
            self.reached.set()
            assert self.go_on.wait(PATIENCE)
        return self.run(pixels)


@pytest.fixture
def slow(opened_models: tuple[OpenedModel, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An application whose model waits in its third row of windows, and a scene of four."""
    from ccsegformer.labelling import scene

    monkeypatch.setattr(scene, "choose_window", lambda *_: (64, 16))
    network = Slow(opened_models[0], at=11)
    model = replace(opened_models[0], engine=replace(opened_models[0].engine, run=network))
    workspace = Workspace([model], tmp_path / "slow")
    write_scene(tmp_path / "s.tif")
    client = TestClient(create_app(workspace), base_url=ADDRESS)
    yield client, network, workspace, upload(client, (tmp_path / "s.tif").read_bytes(), "s.tif")
    network.go_on.set()
    workspace.queue.close()


def test_the_map_is_shown_while_it_grows(slow: Any) -> None:
    client, network, _, image = slow
    job = start(client, image, 0)
    assert network.reached.wait(PATIENCE)
    news = client.get(f"/api/jobs/{job['key']}").json()
    assert news["state"] == "running" and "window 10 of" in news["message"]
    grid = TileGrid(**image["grid"])
    left, top, right, bottom = grid.bounds
    middle, z = (left + right) / 2, grid.zoom

    def value(share: float) -> Any:
        place = {"x": middle, "y": top + share * (bottom - top)}
        return client.get(f"/api/label/jobs/{job['key']}/0/value", params=place).json()

    assert value(0.1) is not None and value(0.9) is None
    tiles = [
        (int(middle // TILE_SIDE), y) for y in range(int(top // TILE_SIDE), int(bottom // TILE_SIDE) + 1)
    ]
    shown = [
        (
            picture_of(client.get(f"/api/label/jobs/{job['key']}/0/map/{z}/{x}/{y}.png").content)[..., 3] > 0
        ).any()
        for x, y in tiles
    ]
    assert any(shown)
    network.go_on.set()
    while job["state"] in ("waiting", "running"):
        job = client.get(f"/api/jobs/{job['key']}?seen={job['version']}").json()
    assert job["state"] == "done" and value(0.9) is not None


def test_a_cancelled_map_leaves_no_file(slow: Any) -> None:
    client, network, workspace, image = slow
    job = start(client, image, 0)
    waiting = start(client, image, 0)
    assert network.reached.wait(PATIENCE)
    assert client.delete(f"/api/jobs/{waiting['key']}").json()["state"] == "cancelled"
    client.delete(f"/api/jobs/{job['key']}")
    network.go_on.set()
    while job["state"] in ("waiting", "running"):
        job = client.get(f"/api/jobs/{job['key']}?seen={job['version']}").json()
    assert job["state"] == "cancelled"
    assert network.calls < 14
    left = [path for path in workspace.folder.rglob("*") if path.is_file()]
    assert [path.parent.name for path in left] == ["images"]


def test_tiles_of_far_places_are_empty(client: TestClient, root: Path) -> None:
    image = client.post("/api/label/paths", json={"path": "scene.tif"}).json()
    tiles = f"/api/label/images/{image['key']}"
    assert picture_of(client.get(f"{tiles}/0/0/0.png").content).shape == (256, 256, 4)
    assert not picture_of(client.get(f"{tiles}/9/3/3.png").content).any()
    assert client.get(f"{tiles}/99/0/0.png").status_code == 422
    assert client.get(f"{tiles}/3/-1/0.png").status_code == 422


def test_a_point_outside_the_map_has_no_value(root: Path) -> None:
    with rasterio.open(root / "scene.tif") as source:
        grid = tile_grid(source)
    assert map_value(root / "scene.tif", grid, -1e6, -1e6) is None
