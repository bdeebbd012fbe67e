"""The recipe's loss decides what is minimised; the default is the model's own cross entropy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ccsegformer.data.labels import Classes
from ccsegformer.data.objects import as_dataset
from ccsegformer.errors import DataError, RecipeError
from ccsegformer.models.losses import SegmentationLoss
from ccsegformer.training._loop import SegmentationTrainer
from ccsegformer.training._loss import balanced_weights, segmentation_loss
from ccsegformer.training.recipe import Recipe, load_recipe
from ccsegformer.training.trainer import train

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")


def first_losses(folder: Path) -> list[float]:
    return [loss for _, loss in json.loads((folder / "training_log.json").read_text())["loss"]]


def test_the_default_is_the_models_own_loss(
    tmp_path: Path, data: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe(training={"steps": 2}), data, tmp_path / "one")

    def fail(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(SegmentationLoss, "__call__", fail)
    train(recipe(training={"steps": 2}, loss={"cross_entropy": 1.0}), data, tmp_path / "two")
    assert first_losses(tmp_path / "one") == first_losses(tmp_path / "two")


def test_equal_class_weights_change_nothing_but_rounding(
    tmp_path: Path, data: Path, recipe: MakeRecipe
) -> None:
    train(recipe(training={"steps": 2}), data, tmp_path / "one")
    train(recipe(training={"steps": 2}, loss={"class_weights": [2, 2, 2]}), data, tmp_path / "two")
    np.testing.assert_allclose(first_losses(tmp_path / "one"), first_losses(tmp_path / "two"), rtol=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        {"class_weights": "balanced"},
        {"cross_entropy": 0, "focal": 1},
        {"cross_entropy": 0, "dice": 1},
        {"cross_entropy": 0, "lovasz": 1},
    ],
    ids=["balanced", "focal", "dice", "lovasz"],
)
def test_each_loss_teaches(tmp_path: Path, data: Path, recipe: MakeRecipe, loss: dict[str, Any]) -> None:
    longer = recipe(
        training={"steps": 20, "accumulation": 1, "save_steps": 20},
        optimizer={"learning_rate": 1e-2},
        loss=loss,
    )
    history = [value for _, value in train(longer, data, tmp_path / "run").loss_history]
    assert np.mean(history[-4:]) < 0.9 * history[0]


def test_the_trainer_minimises_the_loss_of_the_logits(
    tmp_path: Path, data: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    original = SegmentationTrainer.compute_loss

    def compute_loss(self: SegmentationTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss, outputs = original(self, model, inputs, True)
        expected = SegmentationLoss(0.5, dice=2.0, class_weights=(1.0, 2.0, 3.0))
        torch.testing.assert_close(loss, expected(outputs.logits, inputs["labels"], 255))
        seen.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(SegmentationTrainer, "compute_loss", compute_loss)
    chosen = recipe(training={"steps": 2}, loss={"cross_entropy": 0.5, "dice": 2, "class_weights": [1, 2, 3]})
    train(chosen, data, tmp_path / "run")
    assert first_losses(tmp_path / "run") == pytest.approx([sum(seen[:2]) / 2, sum(seen[2:]) / 2])


def test_resuming_keeps_the_loss(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    train(recipe(training={"steps": 2}, loss={"dice": 1.0}), data, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"another loss\.dice"):
        train(recipe(training={"steps": 2}), data, tmp_path / "run", resume=True)


def test_balanced_weights_count_the_pixels_of_the_masks(
    tmp_path: Path, data: Path, recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe(training={"steps": 1}, loss={"class_weights": "balanced"}), data, tmp_path / "run")
    masks = [np.asarray(Image.open(path)) for path in (data / "annotations" / "training").iterdir()]
    counts = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=3)
    expected = counts.sum() / (3 * counts)
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert log["class_weights"] == pytest.approx(dict(zip(("red", "green", "blue"), expected, strict=True)))
    assert "class weights red " in capsys.readouterr().err


def test_ignored_pixels_and_absent_classes_are_left_out_of_the_balance(recipe: MakeRecipe) -> None:
    assert balanced_weights(np.array([6, 0, 2])) == (8 / 12, 1.0, 2.0)
    mask = np.array([[0, 0, 0, 2], [255, 255, 255, 255]], np.uint8)
    images = as_dataset([(np.zeros((2, 4, 3), np.uint8), mask)], Classes(("a", "b", "c")))
    loss = segmentation_loss(recipe(loss={"class_weights": "balanced"}), images, progress=False)
    assert loss.class_weights == (4 / 6, 1.0, 2.0)
    empty = as_dataset([(np.zeros((2, 4, 3), np.uint8), np.full_like(mask, 255))], Classes(("a", "b")))
    with pytest.raises(DataError, match="no pixel is labelled"):
        segmentation_loss(recipe(loss={"class_weights": "balanced"}), empty, progress=False)


def test_the_number_of_weights_is_that_of_the_classes(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"^loss\.class_weights: 2 weights for 3 classes$"):
        train(recipe(loss={"class_weights": [1, 2]}), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"focall": 1}, "unknown key 'loss.focall'; did you mean 'loss.focal'?"),
        ({"dice": -1}, "'loss.dice'"),
        ({"dice": float("inf")}, "'loss.dice'"),
        ({"cross_entropy": 0}, "'loss': one of cross_entropy, focal, dice and lovasz must be above 0"),
        ({"class_weights": "balance"}, "'loss.class_weights' must be 'balanced', not \"balance\"; did you"),
        ({"class_weights": [1, "2"]}, "'loss.class_weights.1'"),
        ({"class_weights": [1, -2]}, "'loss.class_weights.1'"),
        ({"class_weights": []}, "'loss.class_weights'"),
        ({"class_weights": [0, 0]}, "one of the class_weights must be above 0"),
        ({"cross_entropy": 0, "dice": 1, "class_weights": [1, 2]}, "class_weights are for cross_entropy and"),
    ],
)
def test_a_wrong_loss_is_one_line(tmp_path: Path, loss: dict[str, Any], message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"training": {"steps": 1}, "loss": loss}))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
