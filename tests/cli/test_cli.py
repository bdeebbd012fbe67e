"""Command line from end to end on a small folder of images: outputs, exit codes, one-line errors."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file

from ccsegformer import __version__
from ccsegformer.cli import app
from ccsegformer.config.yaml_files import read_yaml
from ccsegformer.models import configuration_ccsegformer

Run = Callable[..., Any]  # see conftest
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four training and two validation images of bright squares on a dark ground."""
    generator = np.random.default_rng(0)
    root = tmp_path / "data"
    for split, count in (("training", 4), ("validation", 2)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((48, 80), dtype=np.uint8)
            y, x = generator.integers(0, 24, size=2)
            mask[y : y + 20, x : x + 20] = 1
            image = generator.integers(0, 60, size=(48, 80, 3)) + 150 * mask[..., None]
            Image.fromarray(image.astype(np.uint8)).save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{index}.png")
    (root / "classes.json").write_text('{"names": ["ground", "square"], "ignore_index": 255}')
    return root


def test_init_restarts_with_the_models_own_network(
    run: Run, folder: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(configuration_ccsegformer._MIT, "b0", ((8, 16, 40, 64), (1, 1, 1, 1), 16))
    first, again, data = tmp_path / "first", tmp_path / "again", ("--data", folder)
    stages = "model.attention=[efficient,none,criss_cross,criss_cross]"
    for output, more in (
        (first, ("--set", stages, "--set", "model.recurrence=2")),
        (again, ("--init", first, "--set", "training.seed=1")),
    ):
        # Steps too small to change the weights.
        done = run(
            "train", recipe, *data, "--output", output, *more, "--set", "optimizer.learning_rate=1e-30"
        )
        assert done.code == 0, done.err
    before, after = load_file(first / "model.safetensors"), load_file(again / "model.safetensors")
    learned = {name: value for name, value in before.items() if "batch_norm" not in name}
    assert all(torch.allclose(value, after[name], atol=1e-20) for name, value in learned.items())
    assert read_yaml(again / "recipe.yaml", "")["model"] == {
        "size": "b0", "attention": ["efficient", "none", "criss_cross", "criss_cross"], "recurrence": 2,
        "projection": "multi_head", "lepe": True, "pretrained": str(first),
    }  # fmt: skip

    checkpoint = first / "checkpoint-2"
    wrong = run(
        "train", recipe, *data, "--output", tmp_path / "c", "--init", checkpoint, "--set", "model.lepe=false"
    )
    assert wrong.code == 1 and f"model.lepe: false, but {checkpoint} has true" in wrong.err
    for name in ("config.json", "model.safetensors"):
        (first / name).unlink()
    unfinished = run("train", recipe, *data, "--output", tmp_path / "d", "--init", first)
    assert unfinished.code == 1 and f"give its last checkpoint, {checkpoint}" in unfinished.err


def test_train_evaluate_predict(run: Run, folder: Path, recipe: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    done = run("train", recipe, "--data", folder, "--output", model, "--set", "model.attention=efficient")
    assert done.code == 0, done.err
    assert json.loads((model / "config.json").read_text())["id2label"] == {"0": "ground", "1": "square"}

    again = run("train", recipe, "--data", folder, "--output", model)
    assert again.code == 1 and str(model) in again.err and len(again.err.splitlines()) == 1

    scored = run("evaluate", model, "--data", folder, "--output", tmp_path / "scores")
    assert scored.code == 0, scored.err
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert set(metrics) == {
        "mean_iou", "mean_accuracy", "pixel_accuracy", "devkit_mean_iou", "per_class", "images", "protocol",
        "mean_image_iou", "image_iou", "ignored_pixels", "mean_iou_interval", "scored",
    }  # fmt: skip
    assert metrics["images"] == 2
    assert f"mean IoU {metrics['mean_iou']:.3f} over 2 images" in scored.out

    assert {path.name for path in (tmp_path / "scores").iterdir()} == {
        "metrics.json", "confusion.csv", "evaluation.html"
    }  # fmt: skip
    assert "<h1>" in (tmp_path / "scores" / "evaluation.html").read_text()

    protocol = tmp_path / "mine.yaml"
    protocol.write_text("resize: {short_side: 64}\nwindow: {size: 48, stride: 40}\nflip: true")
    for given in (protocol, "report"):
        scored = run("evaluate", model, "--data", folder, "--protocol", given, "--output", tmp_path / "other")
        assert scored.code == 0, scored.err
        metrics = json.loads((tmp_path / "other" / "metrics.json").read_text())
        assert metrics["protocol"]["name"] in ("own", "report")
        assert metrics["protocol"]["flip"] is (given == protocol)
    assert f"mean of per-image mIoU {metrics['mean_image_iou']:.3f}" in scored.out

    image = folder / "images" / "validation" / "0.png"
    predicted = run("predict", model, image, "--output", tmp_path / "labelled")
    assert predicted.code == 0, predicted.err
    with Image.open(tmp_path / "labelled" / "0.png") as labels:
        assert labels.mode == "P" and labels.size == (80, 48)
        assert set(np.unique(np.asarray(labels))) <= {0, 1}
    with Image.open(tmp_path / "labelled" / "0_overlay.png") as overlay:
        assert overlay.size == (80, 48)


def test_compare_writes_results_and_shows_the_page(
    run: Run, folder: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(typer, "launch", opened.append)
    output = tmp_path / "compared"
    done = run(
        "compare", recipe, "--data", folder, "--output", output, "--attention", "criss_cross", "--open"
    )
    assert done.code == 0, done.err
    results = json.loads((output / "results.json").read_text())
    assert set(results["models"]) == {"criss_cross", "none"}
    assert all(0 <= model["mean_iou"] <= 1 for model in results["models"].values())
    assert results["command"].startswith("ccsegformer compare")
    assert (output / "report.html").read_text().startswith("<!doctype html>")
    assert str(output / "report.html") in done.out
    assert opened == [str(output / "report.html")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument"),
        (["train", "r.yaml", "--output", "o", "--fast"], "No such option"),
        (["compare", "r.yaml", "--output", "o", "--attention", "cross"], "'cross' is not one of"),
        (["compare", "r.yaml", "--output", "o", "--seeds", "0"], "--seeds"),
        (["export", "m", "--format", "tflite", "--output", "o"], "'tflite' is not one of"),
        (["attention", "m", "i.png", "--output", "a.jpg"], "--output"),
        (["attention", "m", "i.png", "--at", "3", "--output", "a.png"], "X,Y"),
        (["attention", "m", "i.png", "--stage", "2", "--output", "a.html"], "--stage"),
        (["retrain"], "No such command"),
    ],
)
def test_bad_usage_is_exit_code_2(run: Run, arguments: list[str], message: str) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_recipe_without_data_needs_the_option(run: Run, recipe: Path, tmp_path: Path) -> None:
    outcome = run("train", recipe, "--output", tmp_path / "model")
    assert outcome.code == 2 and "--data" in outcome.err
    assert not (tmp_path / "model").exists()


def test_failures_are_one_line_and_exit_code_1(run: Run, folder: Path, recipe: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    output, image = tmp_path / "output", folder / "images" / "validation" / "0.png"
    for arguments, named in [
        (["train", missing, "--data", folder, "--output", output], missing),
        (["train", recipe, "--data", missing, "--output", output], missing),
        (
            ["train", recipe, "--data", folder, "--output", output, "--set", "training.step=3"],
            "training.steps",
        ),
        (["evaluate", missing, "--data", folder, "--output", output], missing),
        (["evaluate", missing, "--data", missing, "--output", output], missing),
        (["evaluate", missing, "--data", folder, "--output", output, "--protocol", "pascal"], "segformer"),
        (["evaluate", missing, "--data", folder, "--output", output, "--protocol", recipe], "transforms"),
        (["compare", recipe, "--data", folder, "--output", output, "--protocol", "pascal"], "segformer"),
        (["compare", recipe, "--data", folder, "--output", output, "--protocol", "report"], "mean_iou"),
        (["predict", missing, folder / "images", "--output", output], missing),
        (["compare", recipe, "--data", missing, "--output", output], missing),
        (["export", missing, "--format", "pt2", "--output", output], missing),
        (["attention", missing, image, "--output", tmp_path / "page.html"], missing),
        (["attention", missing, missing, "--output", tmp_path / "page.html"], missing),
        (["attention", missing, image, "--at", "80,0", "--output", tmp_path / "a.png"], "80,0"),
    ]:
        outcome = run(*arguments)
        assert outcome.code == 1, arguments
        assert outcome.err.startswith("ccsegformer: error: "), outcome.err
        assert len(outcome.err.splitlines()) == 1, outcome.err
        assert str(named) in outcome.err
        assert not output.exists(), arguments


def test_version(run: Run) -> None:
    assert run("--version").out.strip() == f"ccsegformer {__version__}"


COMMANDS = {
    *(
        "train",
        "evaluate",
        "predict",
        "attention",
        "map",
        "export",
        "publish",
        "convert",
        "convert-checkpoint",
    ),
    *("compare", "demo", "app"),
    *("data scene-parse-150", "data procedural", "benchmark model", "benchmark attention"),
}


def commands_below(group: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, command in group.commands.items():
        inner = commands_below(command, f"{name} ") if hasattr(command, "commands") else {name: command}
        found |= {f"{prefix}{path}": leaf for path, leaf in inner.items()}
    return found


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_examples_in_the_help_are_valid(name: str) -> None:
    commands = commands_below(typer.main.get_command(app))
    assert commands.keys() == COMMANDS
    lines = [line.strip() for line in (commands[name].help or "").splitlines()]
    examples = [line for line in lines if line.startswith(("ccsegformer ", "torchrun "))]
    assert examples, "the help has no example"
    for example in examples:
        words = shlex.split(example.rpartition("ccsegformer ")[2])
        depth = len(name.split())
        assert words[:depth] == name.split()
        commands[name].make_context(name, words[depth:])
        for word in words:
            assert not word.startswith("recipes/") or (ROOT / word).is_file(), f"{word}: no such file"


def test_the_demo_has_a_valid_recipe() -> None:
    from importlib.resources import as_file, files

    from ccsegformer.training.recipe import load_recipe

    with as_file(files("ccsegformer.cli") / "demo.yaml") as path:
        assert load_recipe(path).data == "procedural"


def test_shipped_recipes_are_valid() -> None:
    from ccsegformer.training.recipe import load_recipe

    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        load_recipe(path)
        assert path.read_text().startswith("# "), f"{path}: no header"
