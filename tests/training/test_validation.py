"""Scores during training: on schedule, without a trace in the weights, with the best kept, and stopping."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ccsegformer.errors import DataError, RecipeError
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.sources import open_dataset
from ccsegformer.training import _loop
from ccsegformer.training._loop import SegmentationTrainer, validations_since_best
from ccsegformer.training.recipe import Recipe, load_recipe
from ccsegformer.training.trainer import train

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def both(data: Path) -> Path:
    """The data with a validation split, of the same images."""
    for kind in ("images", "annotations"):
        shutil.copytree(data / kind / "training", data / kind / "validation")
    return data


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log_of(folder: Path) -> dict[str, Any]:
    log: dict[str, Any] = json.loads((folder / "training_log.json").read_text())
    return log


def script(monkeypatch: pytest.MonkeyPatch, scores: dict[int, float]) -> None:
    """Let the validation after each step return these scores."""
    original = SegmentationTrainer.evaluate

    def scripted(self: SegmentationTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        class Result:
            class metrics:
                mean_iou = scores[self.state.global_step]

        monkeypatch.setattr(_loop, "score", lambda *_, **__: Result)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SegmentationTrainer, "evaluate", scripted)


def test_scores_appear_in_log_result_progress_and_tensorboard(
    tmp_path: Path, both: Path, recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(recipe(validation={"steps": 4}), both, tmp_path / "run")
    history = result.validation_history
    assert [step for step, _ in history] == [4, 6]  # and after the last step
    scored = evaluate(result.model, open_dataset(both, "validation"), engine="torch").metrics.mean_iou
    assert history[-1][1] == scored
    log = log_of(tmp_path / "run")
    assert log["validation"] == [list(entry) for entry in history]
    assert "best" not in log
    lines = capsys.readouterr().err.splitlines()
    assert not any("mean IoU" in line for line in lines if "step 3/6" in line)
    assert any(f"mean IoU {history[0][1]:.3f}" in line for line in lines if "step 5/6" in line)
    assert lines[-1] == f"training: validated after step 6, mean IoU {history[-1][1]:.3f}"
    (events,) = (tmp_path / "run" / "logs").iterdir()
    board = EventAccumulator(str(events)).Reload()
    assert [event.step for event in board.Scalars("eval/mean_iou")] == [4, 6]


class Restless:
    """Data set that draws from every global generator."""

    def __init__(self, data: Any) -> None:
        self.data, self.classes = data, data.classes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        return self.data[index]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_leaves_the_weights_as_they_would_be(
    tmp_path: Path, both: Path, recipe: MakeRecipe, precision: str
) -> None:
    training = {"steps": 2, "accumulation": 1, "precision": precision}
    train(recipe(training=training), both, tmp_path / "without")
    restless = Restless(open_dataset(both, "validation"))
    scored = recipe(training=training, validation={"steps": 1})
    train(scored, both, tmp_path / "with", validation=restless)
    assert same(weights(tmp_path / "without"), weights(tmp_path / "with"))
    assert log_of(tmp_path / "without")["loss"] == log_of(tmp_path / "with")["loss"]


def test_epochs_between_validations(tmp_path: Path, both: Path, recipe: MakeRecipe) -> None:
    epochs = recipe(validation={"epochs": 1.6})  # of 5 / 4 steps
    assert [step for step, _ in train(epochs, both, tmp_path / "run").validation_history] == [2, 4, 6]


def test_the_best_weights_become_the_result(
    tmp_path: Path, both: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {2: 0.5, 4: 0.7, 6: 0.7})
    result = train(recipe(validation={"steps": 2, "keep_best": True}), both, tmp_path / "run")
    assert log_of(tmp_path / "run")["best"] == [4, 0.7]  # the first of equals
    best = weights(tmp_path / "run" / "checkpoint-4")
    assert same(weights(tmp_path / "run"), best)
    assert not same(best, weights(tmp_path / "run" / "checkpoint-6"))
    assert result.steps == 6
    assert not result.model.training


def test_a_resumed_run_keeps_the_best_of_before(
    tmp_path: Path, both: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {2: 0.9, 4: 0.5, 6: 0.6})
    chosen = recipe(validation={"steps": 2, "keep_best": True})
    train(chosen, both, tmp_path / "run")
    whole = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    (tmp_path / "run" / "model.safetensors").unlink()
    result = train(chosen, both, tmp_path / "run", resume=True)
    assert same(weights(tmp_path / "run"), whole)
    assert result.validation_history == [(2, 0.9), (4, 0.5), (6, 0.6)]


def test_patience_ends_the_run_and_a_resumed_one_at_the_same_step(
    tmp_path: Path, both: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, {1: 0.5, 2: 0.7, 3: 0.7, 4: 0.6, 5: 0.9, 6: 0.9})
    chosen = recipe(training={"save_steps": 1}, validation={"steps": 1, "patience": 2})
    result = train(chosen, both, tmp_path / "run")
    assert result.steps == log_of(tmp_path / "run")["steps"] == 4
    assert [step for step, _ in result.loss_history] == [1, 2, 3, 4]
    stopped = weights(tmp_path / "run")
    assert train(chosen, both, tmp_path / "run", resume=True).steps == 4
    assert same(weights(tmp_path / "run"), stopped)


@pytest.mark.parametrize(("scores", "since"), [([1], 0), ([1, 2], 0), ([2, 1], 1), ([1, 2, 2, 1], 2)])
def test_equal_scores_are_no_progress(scores: list[float], since: int) -> None:
    history: list[dict[str, float]] = [{"loss": 3.0}, *({"eval_mean_iou": score} for score in scores)]
    assert validations_since_best(history) == since


def test_objects_need_their_validation_set(tmp_path: Path, both: Path, recipe: MakeRecipe) -> None:
    training, validation = (open_dataset(both, split) for split in ("training", "validation"))
    chosen = recipe(training={"steps": 1}, validation={"steps": 1})
    with pytest.raises(RecipeError, match=r"pass train\(\.\.\., validation=\.\.\.\)"):
        train(chosen, training, tmp_path / "run")
    with pytest.raises(RecipeError, match="set validation.steps or validation.epochs"):  # noqa: RUF043
        train(recipe(), training, tmp_path / "run", validation=validation)
    pairs = [(validation[0]["image"], validation[0]["mask"])]  # classes are those of the training data
    assert len(train(chosen, training, tmp_path / "run", validation=pairs).validation_history) == 1


def test_other_classes_and_missing_splits_end_before_the_run(
    tmp_path: Path, data: Path, recipe: MakeRecipe
) -> None:
    chosen = recipe(validation={"steps": 1})
    with pytest.raises(DataError, match="validation: no such folder"):
        train(chosen, data, tmp_path / "run")
    shutil.copytree(data, tmp_path / "other")
    listing = {"names": ["red", "blue", "green"], "ignore_index": 255}
    (tmp_path / "other" / "classes.json").write_text(json.dumps(listing))
    other = open_dataset(tmp_path / "other", "training")
    with pytest.raises(DataError, match="its classes red, blue, green are not those of the training data"):
        train(chosen, data, tmp_path / "run", validation=other)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"steps": 0}, "'validation.steps'"),
        ({"epochs": 0}, "'validation.epochs'"),
        ({"steps": 1, "epochs": 1}, "'validation': set steps or epochs, not both"),
        ({"patience": 2}, "'validation': keep_best and patience need steps or epochs"),
        ({"keep_best": True}, "'validation': keep_best and patience need steps or epochs"),
        ({"step": 1}, "unknown key 'validation.step'; did you mean 'validation.steps'?"),
    ],
)
def test_a_wrong_schedule_is_one_line(tmp_path: Path, validation: dict[str, Any], message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"training": {"steps": 1}, "validation": validation}))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
