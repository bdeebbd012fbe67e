"""The study of scenes: its runs are shared and resumed, and its page states what the figures show."""

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from ccsegformer.errors import CCSegformerError
from ccsegformer.models import configuration_ccsegformer
from ccsegformer.raster.dataset import Scenes
from studies.satellite import __main__ as program
from studies.satellite import mapping, pictures
from studies.satellite.options import Run, Study
from studies.satellite.summary import columns, draw, markdown_page, verdict, where

NAMES = ("background", "object")
KNOWN = 96 * 80 - 10 * 20
"""Pixels with data in each scene."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configuration_ccsegformer._MIT, "b0", ((8, 16, 40, 64), (1, 1, 1, 1), 16))


def write(path: Path, values: NDArray[np.uint8], east: int, **profile: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    shape: dict[str, Any] = {"count": count, "height": height, "width": width, "dtype": "uint8"}
    grid = rasterio.Affine(0.5, 0, east, 0, -0.5, 5_000_000)
    with rasterio.open(
        path, "w", driver="GTiff", crs="EPSG:32633", transform=grid, **shape, **profile
    ) as target:
        target.write(values)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A training scene and two for validation, each with a corner without data; objects are bright."""
    generator = np.random.default_rng(0)
    for place, name in enumerate(("training/a", "validation/b", "validation/c")):
        mask = generator.integers(0, 2, (6, 5)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
        image = 100 + 100 * mask + generator.integers(0, 50, (3, *mask.shape), dtype=np.uint8)
        image[:, :10, :20] = 0
        path = tmp_path / "data" / name
        write(path.with_suffix(".tif"), image, 500_000 + 1000 * place, nodata=0)
        write(path.with_name(f"{path.name}_mask.tif"), mask[None], 500_000 + 1000 * place)
    return tmp_path / "data"


def run(monkeypatch: pytest.MonkeyPatch, data: Path, *changes: str) -> None:
    output = data.parent / "runs"
    arguments = ["--data", str(data), "--output", str(output), "--windows", "32", "--map", "64"]
    arguments += ["--pixels", "2048", "--steps", "4", *changes]
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    program.main()


def study(data: Path, **changes: Any) -> Study:
    settings = {
        "data": data,
        "output": data.parent / "runs",
        "seeds": (0,),
        "attentions": ("efficient", "criss_cross"),
        "windows": (32,),
        "maps": (64, 128),
        "steps": 4,
        "pixels": 2048,
        "learning_rate": 1e-3,
    }
    return Study(**(settings | changes))


def result(attention: str, size: int, iou: float, seconds: float, peak: float, **more: Any) -> Any:
    scores = {"mIoU": iou, "IoU": {"background": 0.9, "object": iou}}
    costs = {"seconds_per_megapixel": seconds, "peak_bytes": peak * 1e6, "threads": 1, "device": "cpu"}
    return {"attention": attention, "window": 32, "seed": 0, "map": size, **scores, **costs, **more}


def test_the_study_runs_and_resumes(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "validation").glob("c*"):
        path.unlink()  # one map, hence one scene to map, is enough here
    run(monkeypatch, data, "--attentions", "criss_cross")
    out, runs = capsys.readouterr().out, data.parent / "runs"
    assert "criss_cross-32-seed-0: trained in" in out and "| 32 | criss-cross | 64 |" in out
    (found,) = json.loads((runs / "satellite.json").read_text())["runs"]
    assert np.sum(found["confusion"]) == KNOWN
    assert found["peak_bytes"] > 1e6 and found["seconds_per_megapixel"] > 0
    assert "<svg" in (runs / "satellite.svg").read_text()
    table = (runs / "satellite.md").read_text()
    (runs / "satellite.md").unlink()
    run(monkeypatch, data, "--attentions", "criss_cross")
    assert "trained in" not in capsys.readouterr().out
    assert (runs / "satellite.md").read_text() == table
    with pytest.raises(SystemExit, match="holds runs with other settings"):
        run(monkeypatch, data, "--steps", "5")


def test_an_interrupted_training_resumes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, data, "--attentions", "none", "--map")
    folder = data.parent / "runs" / "none-32-seed-0"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "checkpoint-4" / "trainer_state.json").unlink()
    run(monkeypatch, data, "--attentions", "none", "--map")
    again = load_file(folder / "model.safetensors")
    assert all(bool((again[name] == weights[name]).all()) for name in weights)


def test_a_run_of_another_process_is_skipped_and_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, trained = study(tmp_path / "data"), []
    shared.output.mkdir()
    other = (shared.output / "efficient-32-seed-0.lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)

    def train_run(_study: Study, each: Run) -> None:
        trained.append(each.attention)
        other.close()  # the other process ends

    monkeypatch.setattr(program, "train_run", train_run)
    program.train_all(shared)
    assert trained == ["criss_cross", "efficient", "criss_cross"]
    assert capsys.readouterr().out == "efficient-32-seed-0: running in another process\n"


def test_only_pixels_with_data_are_scored(data: Path) -> None:
    with rasterio.open(data / "validation" / "b_mask.tif") as source:
        wrong = source.read()
    wrong[0, 50, 60:70] = 1 - wrong[0, 50, 60:70]
    wrong[0, :10, :20] = 255  # what maps hold where there are no data
    path = write(data / "map.tif", wrong, 501_000, nodata=255)
    matrix = mapping.score(path, Scenes(data, "validation"), 0)
    assert int(matrix.sum()) == KNOWN and int(matrix.trace()) == KNOWN - 10


def test_scenes_are_mapped_one_by_one_and_scored_together(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = {"b": (1.0, 30), "c": (2.0, 20)}

    def perfect(_model: Path, scene: Path, output: Path, window: int) -> dict[str, Any]:
        shutil.copy(scene.with_name(f"{scene.stem}_mask.tif"), output)
        seconds, peak = costs.pop(scene.stem)
        return {"seconds": seconds, "peak_bytes": peak, "device": "cpu", "threads": 1}

    monkeypatch.setattr(mapping, "_map", perfect)
    folder = data / "model"
    (folder / ".map-64").mkdir(parents=True)  # left by an interrupted study
    found = mapping.mapped(folder, Scenes(data, "validation"), 64)
    assert found["mIoU"] == 1 and np.sum(found["confusion"]) == 2 * KNOWN
    assert found["seconds_per_megapixel"] == pytest.approx(3 / (2 * 0.00768))
    assert found["peak_bytes"] == 30
    assert mapping.mapped(folder, Scenes(data, "validation"), 64) == found  # not mapped again
    assert {path.name for path in (folder / "map-64").iterdir()} == {"b.tif", "c.tif", "map.json"}


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [(1, "Traceback\nDataError: no model\n", "DataError: no model"), (-9, "", "the process was killed")],
)
def test_a_failed_map_ends_in_one_line(
    code: int, stderr: str, reason: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], code, stdout="", stderr=stderr)
    monkeypatch.setattr(mapping.subprocess, "run", lambda *_, **__: done)
    (data / "model").mkdir()
    with pytest.raises(CCSegformerError, match=rf"b\.tif: .* windows of 64: {reason}"):
        mapping.mapped(data / "model", Scenes(data, "validation"), 64)
    assert not (data / "model" / "map-64").exists()


def test_steps_have_the_same_number_of_pixels_for_every_window(data: Path) -> None:
    both = study(data, windows=(32, 16))
    recipes = [both.recipe(each) for each in both.runs]
    assert [recipe.training.batch_size for recipe in recipes] == [2, 2, 8, 8]
    assert [recipe.model.attention for recipe in recipes] == ["efficient", "criss_cross"] * 2
    crops = [transform for transform in recipes[2].transforms if transform.name == "random_crop"]
    assert crops[0].sizes == (16,) and recipes[2].windows.rare_classes == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--windows", "48"], "--pixels 2048 is not a whole number of windows of 48 x 48"),
        (["--windows", "64"], "--pixels 2048 is not a whole number of windows of 64 x 64"),
        (["--map", "16"], "--windows and --map must be at least 32 pixels, not 16"),
        (["--data", "nowhere"], "nowhere"),
        (["--steps", "0"], "training.steps"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    changes: list[str], message: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, data, *changes)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (data.parent / "runs").exists()


def test_where_describes_the_sizes() -> None:
    tried = [512, 1024, 2048]
    assert where(tried, [False, False, False]) == "nowhere"
    assert where(tried, [True, True, True]) == "at every size"
    assert where(tried, [False, True, True]) == "from 1024 on"
    assert where(tried, [True, False, True]) == "at 512, 2048"


def test_the_verdict_follows_from_the_figures() -> None:
    results = [
        result("efficient", 64, 0.5, 2.0, 100),
        result("criss_cross", 64, 0.505, 2.05, 200),
        result("efficient", 128, 0.5, 3.0, 400),
        result("criss_cross", 128, 0.6, 2.0, 200),
    ]
    assert verdict(results, NAMES, 32) == (
        "Trained with 32, by the size of the mapping window. IoU of object: criss-cross wins from 128 on, "
        "efficient nowhere; time: criss-cross wins from 128 on, efficient nowhere; memory: criss-cross wins "
        "from 128 on, efficient at 64."
    )
    # A second seed that disagrees cancels the win in IoU.
    results += [{**each, "seed": 1} for each in results[:3]]
    results.append(result("criss_cross", 128, 0.45, 2.0, 200, seed=1))
    assert "IoU of object: criss-cross wins nowhere, efficient nowhere;" in verdict(results, NAMES, 32)


def test_with_many_classes_miou_decides() -> None:
    assert columns(("a", "b", "c"))[0].title == "mIoU"


def test_the_page_and_the_plot_show_every_row(data: Path) -> None:
    results = [
        result(attention, size, 0.5 + bonus, 2.0, 100)
        for attention, bonus in (("efficient", 0.0), ("criss_cross", 0.1), ("none", -0.2))
        for size in (64, 128)
    ]
    three = study(data, attentions=("efficient", "criss_cross", "none"))
    page = markdown_page(three, results, NAMES, "a processor")
    assert "| 32 | criss-cross | 128 | 0.600 | 0.600 | 2.00 | 100 |" in page
    assert "Windows of 128 are cut to the scene" in page
    assert "Best IoU of object: criss-cross, trained with 32, mapped with 64: 0.600." in page
    assert "This set can judge attention: the better attention (criss_cross) leads" in page
    draw(results, NAMES, "Maps", data / "one.svg")
    draw(results, NAMES, "Maps", data / "two.svg")
    drawn = (data / "one.svg").read_text()
    assert drawn == (data / "two.svg").read_text() and "criss-cross, trained with 32" in drawn


def test_pictures_show_the_scene_its_truth_and_the_maps(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = data.parent / "runs"
    with rasterio.open(data / "validation" / "b_mask.tif") as source:
        labels = source.read()
    labels[0, :10, :20] = 255
    write(runs / "criss_cross-32-seed-0" / "map-64" / "b.tif", labels, 501_000)
    shown = pictures.panels(data, runs, 32, 64, 0)
    assert list(shown) == ["scene", "truth", "criss-cross"]
    assert (shown["truth"] == shown["criss-cross"]).all() and not shown["truth"][:10, :20].any()
    output = data.parent / "picture.jpg"
    arguments = ["--data", str(data), "--runs", str(runs), "--window", "32", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["pictures", *arguments, "--map", "64"])
    pictures.main()
    with Image.open(output) as picture:
        assert picture.format == "JPEG" and picture.width == 1040
    monkeypatch.setattr(sys, "argv", ["pictures", *arguments, "--map", "128"])
    with pytest.raises(SystemExit, match="no maps of b, trained with 32, mapped with 128"):
        pictures.main()
