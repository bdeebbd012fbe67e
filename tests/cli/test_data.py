"""`ccsegformer data scene-parse-150`, and data sets by name and as parquet files in other commands."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from ccsegformer.data.scene_parse_150 import fetch
from ccsegformer.lab import comparison
from ccsegformer.lab.cost import Cost
from ccsegformer.models import configuration_ccsegformer

Run = Callable[..., Any]  # see conftest
FEW = {"training": 2, "validation": 1}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use separate caches, data sets of three images and a tiny B0, and skip the measurement of costs."""
    tiny = ((8, 16, 40, 64), (1, 1, 1, 1), 16)
    monkeypatch.setitem(configuration_ccsegformer._MIT, "b0", tiny)
    cost = Cost(1, 1.0, 1.0, 1.0, height=40, width=48, device="cpu", threads=1, engine="openvino 1")
    monkeypatch.setattr(comparison, "measure_cost", lambda *_: cost)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(fetch.fetch_scene_parse_150, "__kwdefaults__", _kwdefaults() | {"pairs": FEW})


def _kwdefaults() -> dict[str, Any]:
    return fetch.fetch_scene_parse_150.__kwdefaults__ or {}


def encode(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.fixture
def pairs() -> dict[str, list[tuple[bytes, bytes]]]:
    """Return images with annotations of raw ids 0 to 3."""
    generator = np.random.default_rng(0)

    def pair() -> tuple[bytes, bytes]:
        mask = generator.integers(0, 4, (40, 48), dtype=np.uint8)
        image = 60 * mask[..., None] + generator.integers(0, 60, (40, 48, 3), dtype=np.uint8)
        return encode(image, "JPEG"), encode(mask, "PNG")

    return {split: [pair() for _ in range(count)] for split, count in FEW.items()}


@pytest.fixture
def archive(tmp_path: Path, pairs: dict[str, list[tuple[bytes, bytes]]]) -> Path:
    path = tmp_path / "ADEChallengeData2016.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("ADEChallengeData2016/objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName\n")
        for split, of in pairs.items():
            for number, (image, mask) in enumerate(of):
                opened.writestr(f"ADEChallengeData2016/images/{split}/ADE_{number}.jpg", image)
                opened.writestr(f"ADEChallengeData2016/annotations/{split}/ADE_{number}.png", mask)
    return path


@pytest.fixture
def parquet(tmp_path: Path, pairs: dict[str, list[tuple[bytes, bytes]]]) -> Path:
    folder = tmp_path / "parquet"
    folder.mkdir()
    for split, of in pairs.items():
        rows = {"pixels": [image for image, _ in of], "label": [mask for _, mask in of]}
        pq.write_table(pa.table(rows), folder / f"{split}.parquet")
    return folder


def test_by_name_in_every_command(run: Run, archive: Path, recipe: Path, tmp_path: Path) -> None:
    early = run("train", recipe, "--data", "scene_parse_150", "--output", tmp_path / "model")
    assert early.code == 1 and "fetch it with 'ccsegformer data scene-parse-150'" in early.err

    fetched = run("data", "scene-parse-150", "--output", tmp_path / "set", "--archive", archive)
    assert fetched.code == 0, fetched.err
    assert str(tmp_path / "set") in fetched.out and "--data scene_parse_150" in fetched.out

    trained = run("train", recipe, "--data", "scene_parse_150", "--output", tmp_path / "model")
    assert trained.code == 0, trained.err
    assert len(json.loads((tmp_path / "model" / "classes.json").read_text())["names"]) == 150
    scored = run("evaluate", tmp_path / "model", "--data", "scene_parse_150", "--output", tmp_path / "scores")
    assert scored.code == 0, scored.err
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["images"] == 1
    predicted = run(
        "predict", tmp_path / "model", tmp_path / "set/images/validation", "--output", tmp_path / "p"
    )
    assert predicted.code == 0, predicted.err

    arguments = ["--data", "scene_parse_150", "--output", tmp_path / "compared", "--attention", "efficient"]
    compared = run("compare", recipe, *arguments)
    assert compared.code == 0, compared.err
    results = json.loads((tmp_path / "compared" / "results.json").read_text())
    assert results["data"]["name"] == "scene_parse_150" and len(results["data"]["classes"]) == 150


def test_parquet_columns_travel_with_a_run(run: Run, parquet: Path, recipe: Path, tmp_path: Path) -> None:
    columns = ["--image-column", "pixels", "--mask-column", "label", "--classes", "scene_parse_150"]
    output = tmp_path / "compared"
    given = ["--data", parquet, *columns]
    compared = run("compare", recipe, *given, "--output", output, "--attention", "efficient")
    assert compared.code == 0, compared.err
    named = json.loads((output / "results.json").read_text())["data"]["name"]
    assert named == f"{parquet}?image=pixels&mask=label&classes=scene_parse_150"
    assert f"--data &#39;{named.replace('&', '&amp;')}&#39;" in (output / "report.html").read_text()

    model = output / "efficient-seed0"
    assert yaml.safe_load((model / "recipe.yaml").read_text())["data"] == named
    first, second = run("evaluate", model, *given), run("evaluate", model, "--data", named)
    assert first.code == second.code == 0, first.err + second.err
    assert first.out == second.out
    again = run("train", model / "recipe.yaml", "--output", tmp_path / "again")
    assert again.code == 0, again.err


def test_failures_are_one_line(run: Run, archive: Path, parquet: Path, tmp_path: Path) -> None:
    (tmp_path / "other.zip").write_bytes(b"<html>")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    fetching = ["data", "scene-parse-150", "--output", tmp_path / "set", "--archive"]
    scoring = ["evaluate", "m", "--data"]
    for arguments, named in [
        ([*fetching, tmp_path / "other.zip"], "other.zip: not a whole zip archive"),
        ([*fetching, tmp_path / "none.zip"], "none.zip: no such file"),
        ([*fetching[:3], tmp_path / "full", "--archive", archive], "full: is not empty"),
        ([*scoring, parquet, "--classes", "scene_parse_150"], "choose another of pixels, label"),
        ([*scoring, "org/name"], "a set on the hub is named hf://datasets/org/name"),
        ([*scoring, "procedural", "--image-column", "a"], "procedural: has no option 'image'"),
    ]:
        outcome = run(*arguments)
        assert outcome.code == 1, arguments
        lines = [line for line in outcome.err.splitlines() if line.strip()]
        assert len(lines) == 1 and named in lines[0], outcome.err
    assert not (tmp_path / "set").exists()


def test_help(run: Run) -> None:
    assert "scene-parse-150" in run("data", "--help").out
    assert "ccsegformer data scene-parse-150 --output" in run("data", "scene-parse-150", "--help").out
    for command in ("train", "evaluate", "compare"):
        assert "--image-column" in run(command, "--help").out
