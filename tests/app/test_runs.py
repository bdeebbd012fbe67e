"""The tab Runs: what the files of runs say, damaged ones too, and the page on desktop and phone."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, expect

from ccsegformer.app.server import create_app
from ccsegformer.app.workspace import OpenedModel, Workspace
from ccsegformer.training.recipe import Recipe, TrainingSection, save_recipe
from tests.app.conftest import ADDRESS, served_app


def write_run(folder: Path, seed: int, score: float) -> None:
    save_recipe(Recipe(training=TrainingSection(steps=4, seed=seed)), folder / "recipe.yaml")
    log = {"steps": 4, "loss": [[1, 2.0], [2, 1.5], [4, 1.0 + seed]]}
    (folder / "training_log.json").write_text(json.dumps(log))
    (folder / "model.safetensors").write_bytes(b"")
    metrics = {"mean_iou": score, "mean_iou_interval": [score - 0.1, score + 0.1]}
    metrics["per_class"] = {"ground": {"iou": score}, "water": {"iou": None}}
    (folder / "metrics.json").write_text(json.dumps({**metrics, "protocol": {"summary": "whole image"}}))
    (folder / "evaluation.html").write_text("<!doctype html><title>Worst images</title>")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs: two whole, one unfinished, two damaged, and a link that leads out."""
    folder = tmp_path / "runs"
    for seed, name in enumerate(("study/first", "second")):
        (folder / name).mkdir(parents=True)
        write_run(folder / name, seed, 0.25 + 0.5 * seed)
    begun = folder / "begun" / "checkpoint-2"
    begun.mkdir(parents=True)
    save_recipe(Recipe(training=TrainingSection(steps=4)), folder / "begun" / "recipe.yaml")
    state = {"log_history": [{"step": 1, "loss": 3.0}, {"step": 2, "learning_rate": 1.0}]}
    (begun / "trainer_state.json").write_text(json.dumps(state))
    (folder / "damaged").mkdir()
    (folder / "damaged" / "recipe.yaml").write_text("model: {size: b9}")
    (folder / "damaged" / "metrics.json").write_text('{"mean_iou": ')
    (folder / "odd").mkdir()
    (folder / "odd" / "metrics.json").write_text('{"mean_iou": 0.5, "per_class": [1, 2]}')
    outside = tmp_path / "outside"
    outside.mkdir()
    write_run(outside, 0, 0.9)
    (folder / "link").symlink_to(outside)
    for place, path in enumerate(sorted(folder.rglob("*"))):
        if path.is_file():
            os.utime(path, (1_000_000 + place, 1_000_000 + place))
    return folder


@pytest.fixture
def workspace(opened_models: tuple[OpenedModel, ...], runs: Path, tmp_path: Path) -> Iterator[Workspace]:
    opened = Workspace(opened_models, tmp_path / "temporary", runs=runs)
    yield opened
    opened.queue.close()


@pytest.fixture
def client(workspace: Workspace) -> TestClient:
    return TestClient(create_app(workspace), base_url=ADDRESS)


def test_runs_are_listed_the_latest_first_with_what_is_wrong(client: TestClient) -> None:
    listed = {run["name"]: run for run in client.get("/api/runs").json()["runs"]}
    assert list(listed) == ["study/first", "second", "odd", "damaged", "begun"]
    first = listed["study/first"]
    assert (first["model"], first["state"], first["score"]) == ("B0, criss_cross", "trained", 0.25)
    assert first["interval"] == [0.15, 0.35] and first["problem"] == ""
    assert listed["begun"]["state"] == "not finished" and listed["begun"]["score"] is None
    assert (
        "b9" in listed["damaged"]["problem"]
        and "metrics.json: cannot be read" in listed["damaged"]["problem"]
    )


def test_a_run_has_its_curve_and_its_classes(client: TestClient) -> None:
    found = client.get("/api/runs/run", params={"name": "second"}).json()
    assert found["loss"] == [[1, 2.0], [2, 1.5], [4, 2.0]]
    assert found["classes"] == {"ground": 0.75, "water": None}
    assert found["settings"]["training"]["seed"] == 1 and found["protocol"] == "whole image"
    begun = client.get("/api/runs/run", params={"name": "begun"}).json()
    assert begun["loss"] == [[1, 3.0]] and begun["classes"] == {}


def test_a_run_of_odd_content_is_said_to_be_damaged(client: TestClient) -> None:
    found = client.get("/api/runs/run", params={"name": "odd"})
    assert found.status_code == 200 and "damaged" in found.json()["problem"]


@pytest.mark.parametrize("name", ["link", "../outside", "/etc", "study", "", "second/../second"])
def test_other_folders_are_not_read(client: TestClient, name: str) -> None:
    for route in ("run", "report"):
        refused = client.get(f"/api/runs/{route}", params={"name": name})
        assert refused.status_code == 422 and "no such run" in refused.json()["detail"]


def test_a_report_may_not_see_the_page(client: TestClient) -> None:
    shown = client.get("/api/runs/report", params={"name": "second"})
    assert "Worst images" in shown.text
    assert shown.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    missing = client.get("/api/runs/report", params={"name": "begun"})
    assert missing.status_code == 422 and "has no evaluation.html" in missing.json()["detail"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_two_runs_are_compared(browser: Browser, workspace: Workspace, width: int, scheme: str) -> None:
    with served_app(workspace) as address:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{address}/#runs")
        page.get_by_label("Show study/first").check()
        page.get_by_label("Show second").check()
        expect(page.get_by_role("img", name="Training loss of study/first and second")).to_be_visible()
        assert page.locator(".curves path").count() == 2
        expect(page.get_by_role("row", name="ground")).to_contain_text("+0.500")
        expect(page.locator(".settings")).to_contain_text("training.seed")
        expect(page.locator(".settings tr")).to_have_count(1)
        expect(page.get_by_role("link", name="Worst images of second")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shared = page.url
        page.goto("about:blank")
        page.goto(shared)
        expect(page.get_by_label("Show second")).to_be_checked()
        assert not problems
        page.close()
