"""Experiment trackers by the Trainer's names: what they are told, and what stops a run before it begins."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from ccsegformer.errors import MissingExtraError, RecipeError, TrainingError
from ccsegformer.training.recipe import Recipe, load_recipe
from ccsegformer.training.trainer import train

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")


class Client:
    """The part of wandb that the Trainer's callback and its end use."""

    def __init__(self) -> None:
        self.run: Any = None
        self.finished = 0

    def finish(self) -> None:
        self.run = None
        self.finished += 1


class Tracker(TrainerCallback):
    """Stands for the Trainer's own callback of Weights & Biases, and keeps what it is told."""

    client = Client()
    problem: Exception | None = None
    told: list[dict[str, float]]

    def __init__(self) -> None:
        self._wandb, self._initialized = self.client, False
        type(self).told = []

    def setup(self, args: Any, state: Any, model: Any, **_: Any) -> None:
        if self.problem:
            raise self.problem
        self._initialized = True
        if self._wandb.run is None:
            self._wandb.run = SimpleNamespace(name=args.run_name, size=model.num_parameters())
        self.told.append({"began": state.global_step})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        assert self._initialized and self._wandb.run is not None
        self.told.append({"step": state.global_step, **logs})


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[Tracker]:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr(Tracker, "client", Client())
    return Tracker


def test_a_tracker_hears_of_losses_and_its_run_ends_with_the_training(
    tracker: type[Tracker], data: Path, tmp_path: Path, recipe: MakeRecipe
) -> None:
    result = train(recipe(training={"report_to": "wandb"}), data, tmp_path / "run", progress=False)
    assert tracker.told[0] == {"began": 0}
    losses = [(entry["step"], entry["loss"]) for entry in tracker.told if "loss" in entry]
    assert losses == result.loss_history
    assert tracker.client.run is None and tracker.client.finished == 1
    assert not (tmp_path / "run" / "logs").exists(), "TensorBoard was not asked for"


def test_a_run_that_the_caller_has_begun_goes_on(
    tracker: type[Tracker], data: Path, tmp_path: Path, recipe: MakeRecipe
) -> None:
    tracker.client.run = mine = SimpleNamespace(name="mine")
    train(recipe(training={"report_to": ["wandb"]}), data, tmp_path / "run", progress=False)
    assert tracker.client.run is mine and tracker.client.finished == 0


def test_a_failing_training_ends_the_trackers_run(
    tracker: type[Tracker], data: Path, tmp_path: Path, recipe: MakeRecipe
) -> None:
    diverging = recipe(training={"report_to": "wandb"}, optimizer={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match="step"):
        train(diverging, data, tmp_path / "run", progress=False)
    assert tracker.client.finished == 1


def test_a_tracker_that_cannot_begin_stops_the_run_in_one_line(
    tracker: type[Tracker], data: Path, tmp_path: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "problem", ValueError("no API key\nUse `wandb login`."))
    with pytest.raises(TrainingError) as caught:
        train(recipe(training={"report_to": "wandb"}), data, tmp_path / "run", progress=False)
    assert str(caught.value) == "training.report_to: wandb cannot begin: no API key Use `wandb login`."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("WandbCallback requires wandb"), "wandb is not installed: pip install wandb"),
        (ImportError("No module named 'x'"), "wandb cannot be imported: No module named 'x'"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_read_or_written(
    error: Exception, says: str, tmp_path: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise error

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", missing)
    with pytest.raises(MissingExtraError, match=f"^training.report_to: {says}$"):
        train(recipe(training={"report_to": "wandb"}), tmp_path / "no data", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trackers_may_change_on_resuming(data: Path, tmp_path: Path, recipe: MakeRecipe) -> None:
    train(recipe(training={"steps": 4}), data, tmp_path / "run", progress=False)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "run" / name).unlink()
    silent = recipe(training={"steps": 4, "report_to": "none"})
    assert silent.training.report_to == ()
    train(silent, data, tmp_path / "run", resume=True, progress=False)
    (events,) = (tmp_path / "run" / "logs").iterdir()
    board = EventAccumulator(str(events)).Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]


def test_names_are_checked_when_the_recipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("training: {steps: 1}\n")
    both = load_recipe(path, ["training.report_to=[mlflow, tensorboard]"])
    assert both.training.report_to == ("mlflow", "tensorboard")
    assert load_recipe(path, ["training.report_to=trackio"]).training.report_to == ("trackio",)
    with pytest.raises(RecipeError, match=r"'training\.report_to' must be .*; did you mean 'wandb'\?"):
        load_recipe(path, ["training.report_to=wandbx"])
    with pytest.raises(RecipeError, match=r"'training\.report_to'"):
        load_recipe(path, ["training.report_to=3"])
    with pytest.raises(ValidationError):
        Recipe.model_validate({"training": {"steps": 1, "report_to": ["all"]}})


def test_the_names_are_the_trainers() -> None:
    assert {"tensorboard", "wandb", "trackio", "mlflow"} <= set(integration_utils.INTEGRATION_TO_CALLBACK)
