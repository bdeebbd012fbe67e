"""Training on a data set whose classes.json has one name: one logit, saved as transformers does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation

from ccsegformer.errors import DataError
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.labelling.loading import load_model
from ccsegformer.training.recipe import Recipe
from ccsegformer.training.trainer import train

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")
EFFICIENT = {"attention": "efficient"}
SHORT = {"steps": 2, "accumulation": 1, "save_steps": 1}


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Four images with a bright right part, which is the only class."""
    root = tmp_path / "squares"
    generator = np.random.default_rng(0)
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(4):
            mask = np.zeros((32, 32), np.uint8)
            mask[:, generator.integers(8, 24) :] = 1
            image = generator.integers(0, 60, (32, 32, 3)) + 150 * mask[..., None]
            Image.fromarray(image.astype(np.uint8)).save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{index}.png")
    (root / "classes.json").write_text('{"names": ["road"], "ignore_index": 255}')
    return root


def test_a_data_set_of_one_name_is_learned(squares: Path, tmp_path: Path, recipe: MakeRecipe) -> None:
    output = tmp_path / "run"
    optimizer, training = {"learning_rate": 5e-3}, {"steps": 24, "accumulation": 1, "save_steps": 24}
    wanted = recipe(model=EFFICIENT, training=training, optimizer=optimizer, validation={"steps": 24})
    result = train(wanted, squares, output, progress=False)
    assert result.loss_history[-1][1] < 0.8 * result.loss_history[0][1]
    assert result.loss_history[0][1] == pytest.approx(np.log(2), abs=0.2)
    model, classes = load_model(output)
    assert model.config.num_labels == 1 and classes.names == ("background", "road")
    scores = evaluate(model, squares)
    assert scores.metrics.mean_iou is not None and scores.metrics.mean_iou > 0.8
    assert result.validation_history[-1][1] == pytest.approx(scores.metrics.mean_iou, abs=0.01)
    theirs = AutoModelForSemanticSegmentation.from_pretrained(output).eval()
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels).logits, model.cpu()(pixels).logits)


@pytest.mark.parametrize(
    "loss",
    [
        {"class_weights": "balanced"},
        {"dice": 1.0, "class_weights": (1.0, 4.0)},
        {"cross_entropy": 0.0, "lovasz": 1.0},
    ],
)
def test_every_loss_trains_one_label(
    squares: Path, tmp_path: Path, recipe: MakeRecipe, loss: dict[str, Any]
) -> None:
    result = train(recipe(loss=loss, training=SHORT), squares, tmp_path / "run", progress=False)
    assert all(np.isfinite(value) for _, value in result.loss_history)
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert log["labels"]["pixels"].keys() == {"background", "road"}


def test_fine_tuning_keeps_the_classifier_and_resuming_knows_the_classes(
    squares: Path, tmp_path: Path, recipe: MakeRecipe
) -> None:
    wanted = recipe(training=SHORT)
    train(wanted, squares, tmp_path / "first", progress=False)
    train(wanted, squares, tmp_path / "first", progress=False, resume=True)
    again = train(wanted, squares, tmp_path / "again", init=tmp_path / "first", progress=False)
    assert again.load_summary is not None and not again.load_summary.new


def test_masks_of_0_and_255_need_a_map(squares: Path, tmp_path: Path, recipe: MakeRecipe) -> None:
    for path in (squares / "annotations").rglob("*.png"):
        Image.fromarray(np.array(Image.open(path)) * 255).save(path)
    with pytest.raises(DataError, match=r"one class only, 'background'.* if 255 marks 'road', save it as 1"):
        train(recipe(training=SHORT), squares, tmp_path / "run", progress=False)
    listing = {"names": ["road"], "ignore_index": 254, "map": {"0": "background", "255": "road"}}
    (squares / "classes.json").write_text(json.dumps(listing))
    result = train(recipe(training=SHORT), squares, tmp_path / "mapped", progress=False)
    assert result.model.config.id2label == {0: "road"}
