from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ccsegformer.data.stream import TrainingStream, collate
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.losses import SegmentationLoss
from ccsegformer.sources import open_dataset
from ccsegformer.training._arguments import trainer_arguments
from ccsegformer.training._loop import SegmentationTrainer
from ccsegformer.training.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")


def make_trainer(
    model: nn.Module, recipe: Recipe, data: Path, output: Path, steps: int = 1, **kwargs: Any
) -> SegmentationTrainer:
    dataset = open_dataset(data, "training")
    batch = recipe.training.batch_size * recipe.training.accumulation
    return SegmentationTrainer(
        model=model,
        args=trainer_arguments(recipe, output, steps),
        train_dataset=TrainingStream(dataset, recipe.transforms, seed=0, length=steps * batch),
        data_collator=lambda samples: collate(samples, 255),
        classes=dataset.classes,
        optimization=recipe.optimizer,
        epoch_length=1.0,
        segmentation_loss=SegmentationLoss(),
        validation=recipe.validation,
        **kwargs,
    )


def make_model(**config: Any) -> CrissCrossSegformerForSemanticSegmentation:
    torch.manual_seed(0)
    config = {"num_labels": 3, "drop_path_rate": 0.0, "classifier_dropout_prob": 0.0, **config}
    return CrissCrossSegformerForSemanticSegmentation(CrissCrossSegformerConfig.mit("b0", **config))


def test_a_step_s_gradient_is_the_mean_over_its_micro_batches(
    tmp_path: Path, data: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step = recipe(training={"steps": 1, "batch_size": 2, "accumulation": 3})
    stream = TrainingStream(open_dataset(data, "training"), one_step.transforms, seed=0, length=6)
    model = make_model().train()
    batches = [collate([stream[2 * i], stream[2 * i + 1]], 255) for i in range(3)]
    loss = torch.stack([model(**batch).loss for batch in batches]).mean()
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}

    trained, seen = make_model(), {}

    def keep(self: SegmentationTrainer, model: nn.Module) -> torch.Tensor:
        seen.update({name: parameter.grad.clone() for name, parameter in trained.named_parameters()})
        return torch.tensor(1.0)

    monkeypatch.setattr(SegmentationTrainer, "_clip_grad_norm", keep)
    trainer = make_trainer(trained, one_step, data, tmp_path)
    trainer.train()
    assert seen.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, rtol=1e-4, atol=1e-7)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ({"name": "linear", "warmup_steps": 0}, [1, 3 / 4, 2 / 4, 1 / 4]),
        ({"name": "linear", "warmup_steps": 2}, [0, 1 / 2, 1, 1 / 2]),
        ({"name": "poly", "warmup_steps": 1, "power": 2.0}, [0, 1, 4 / 9, 1 / 9]),
        ({"name": "poly", "warmup_steps": 4}, [0, 1 / 4, 2 / 4, 3 / 4]),
        ({"name": "poly", "warmup_steps": 8}, [0, 1 / 8, 2 / 8, 3 / 8]),
    ],
)
def test_schedules(
    schedule: dict[str, Any], factors: list[float], tmp_path: Path, data: Path, recipe: MakeRecipe
) -> None:
    four = recipe(training={"steps": 4}, schedule=schedule, optimizer={"learning_rate": 1e-4})
    trainer = make_trainer(make_model(), four, data, tmp_path, steps=4)
    trainer.create_optimizer_and_scheduler(4)
    for factor in factors:
        assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(1e-4 * factor, abs=1e-12)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def test_the_head_s_learning_rate_follows_the_schedule(
    tmp_path: Path, data: Path, recipe: MakeRecipe
) -> None:
    optimizer = {"learning_rate": 1e-4, "head_learning_rate_factor": 10.0}
    four = recipe(training={"steps": 4}, schedule={"name": "poly"}, optimizer=optimizer)
    trainer = make_trainer(make_model(), four, data, tmp_path, steps=4)
    trainer.create_optimizer_and_scheduler(4)
    for factor in [0, 1 / 2, 1, 1 / 2]:
        rates = sorted({group["lr"] for group in trainer.optimizer.param_groups})
        assert rates == pytest.approx([1e-4 * factor, 1e-3 * factor][: len(rates)], abs=1e-12)
        assert len(rates) == (2 if factor else 1)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def test_adafactor_is_the_report_s(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    trainer = make_trainer(make_model(), recipe(optimizer={"name": "adafactor"}), data, tmp_path)
    optimizer = trainer.create_optimizer()
    assert type(optimizer).__name__ == "Adafactor"
    for group in optimizer.param_groups:
        assert (group["lr"], group["scale_parameter"], group["relative_step"]) == (1e-3, False, False)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_first_step_is_larger_in_the_head_and_shrinks_what_decays(
    name: str, tmp_path: Path, data: Path, recipe: MakeRecipe
) -> None:
    def step(**optimizer: Any) -> dict[str, torch.Tensor]:
        model = make_model()
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        once = recipe(
            training={"steps": 1}, schedule={"warmup_steps": 0}, optimizer={"name": name, **optimizer}
        )
        make_trainer(model, once, data, tmp_path).train()
        return {key: parameter - before[key] for key, parameter in model.named_parameters()}

    plain, faster = step(), step(head_learning_rate_factor=10.0)
    for key in plain:
        factor = 10 if key.startswith("decode_head.") else 1
        torch.testing.assert_close(faster[key], factor * plain[key], rtol=1e-3, atol=1e-6)
    decayed = step(weight_decay=0.5)
    model = dict(make_model().named_parameters())
    for key in plain:
        decays = key.endswith("weight") and "norm" not in key
        shrunk = plain[key] - 1e-3 * 0.5 * decays * model[key]
        torch.testing.assert_close(decayed[key], shrunk, rtol=1e-2, atol=2e-6)


def test_weights_alone_decay(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    trainer = make_trainer(
        make_model(projection="ccnet"), recipe(optimizer={"weight_decay": 0.1}), data, tmp_path
    )
    decayed, kept = trainer.create_optimizer().param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in kept["params"])
