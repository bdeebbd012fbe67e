"""Dropout and stochastic depth differ between micro-batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.training._loop import SegmentationTrainer
from ccsegformer.training.recipe import Recipe
from ccsegformer.training.trainer import train

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")
DROPS = ("drop_path_rate", "classifier_dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob")


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the loss of every micro-batch."""
    found: list[float] = []
    original = SegmentationTrainer.training_step

    def training_step(self: SegmentationTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = original(self, *args, **kwargs)
        found.append(loss.item())
        return loss

    monkeypatch.setattr(SegmentationTrainer, "training_step", training_step)
    return found


@pytest.mark.parametrize("drop", [*DROPS, None])
def test_every_micro_batch_drops_something_else(
    drop: str | None, tmp_path: Path, data: Path, recipe: MakeRecipe, losses: list[float]
) -> None:
    # One image and a negligible learning rate: only dropout can make micro-batches differ.
    for name in "1234":
        for kind in ("images", "annotations"):
            (data / kind / "training" / f"{name}.png").unlink()
    rates = dict.fromkeys(DROPS, 0.0) | ({drop: 0.5} if drop else {})
    config = CrissCrossSegformerConfig.mit("b0", attention="efficient", num_labels=3, **rates)
    CrissCrossSegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "pretrained")
    still = recipe(
        model={"pretrained": str(tmp_path / "pretrained"), "attention": "efficient"},
        training={"steps": 3, "batch_size": 8},
        optimizer={"learning_rate": 1e-30, "weight_decay": 0.0},
    ).model_copy(update={"transforms": ()})
    train(still, data, tmp_path / "run")
    assert len(losses) == 3 * 2
    assert len(set(losses)) == (6 if drop else 1)
