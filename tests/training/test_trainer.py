import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)

from ccsegformer.data.labels import read_classes
from ccsegformer.data.stream import TrainingStream
from ccsegformer.errors import DataError, OutputError, RecipeError, TrainingError
from ccsegformer.models import (
    CrissCrossSegformerConfig,
    CrissCrossSegformerForSemanticSegmentation,
    modeling_ccsegformer,
)
from ccsegformer.sources import open_dataset
from ccsegformer.training import trainer as trainer_module
from ccsegformer.training._loop import SegmentationTrainer
from ccsegformer.training.recipe import Recipe, load_recipe
from ccsegformer.training.trainer import train

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def break_off(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt training in the middle of a step, between its two micro-batches."""
    original = SegmentationTrainer.training_step
    calls: list[int] = []

    def training_step(self: SegmentationTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(self.state.global_step + 1)
        if calls[-2:] == [step, step]:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SegmentationTrainer, "training_step", training_step)


def test_a_run_leaves_a_whole_model_folder(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    result = train(recipe(), data, tmp_path / "run")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])

    assert not result.model.training
    assert result.steps == 6
    assert result.load_summary is None
    assert [step for step, _ in result.loss_history] == [1, 2, 3, 4, 5, 6]
    assert result.seconds > 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "classes.json", "origins.json"),
        "training_data.json",
        *("recipe.yaml", "training_log.json", "checkpoint-4", "checkpoint-6", "logs"),
    }
    assert list((tmp_path / "run" / "logs").iterdir())
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe().model_copy(update={"data": str(data)})
    assert read_classes(tmp_path / "run" / "classes.json") == read_classes(data / "classes.json")
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert log["loss"] == [[step, loss] for step, loss in result.loss_history]
    assert (log["steps"], log["images"], log["global_batch"], log["processes"]) == (6, 5, 4, 1)


def test_transformers_reads_the_folder(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    result = train(recipe(), data, tmp_path / "run")
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-6"):
        model = AutoModelForSemanticSegmentation.from_pretrained(folder)
        assert model.config.id2label == {0: "red", 1: "green", 2: "blue"}
        assert not hasattr(model.config, "use_cache")
        image = open_dataset(data, "training")[0]["image"]
        processor = AutoImageProcessor.from_pretrained(folder)
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        stream = TrainingStream(open_dataset(data, "training"), (), seed=0, length=5)
        expected = next(sample for i, sample in enumerate(stream) if stream.source(i) == 0)["pixel_values"]
        torch.testing.assert_close(pixels[0], expected, rtol=0, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(model(pixels).logits, result.model(pixels).logits, rtol=0, atol=1e-6)
        assert read_classes(folder / "classes.json").names == ("red", "green", "blue")
        assert not (folder / "training_args.bin").exists()


def test_training_learns(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    longer = recipe(training={"steps": 60, "save_steps": 60}, optimizer={"learning_rate": 3e-3})
    history = train(longer, data, tmp_path / "run").loss_history
    assert history[-1][1] < 0.6 * history[0][1]


def test_the_seed_decides_the_run(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        train(recipe(training={"steps": 2, "seed": seed}), data, tmp_path / name)
    assert_same_weights(tmp_path / "one", tmp_path / "same")
    assert not torch.equal(
        *(weights(tmp_path / name)["decode_head.classifier.weight"] for name in ("one", "other"))
    )


@pytest.mark.parametrize(
    ("attention", "optimizer", "schedule"),
    [
        (
            "efficient",
            {"name": "adamw", "head_learning_rate_factor": 10.0, "weight_decay": 0.1, "decay_biases": True},
            "poly",
        ),
        ("criss_cross", {"name": "adafactor"}, "linear"),
    ],
)
def test_a_resumed_run_gives_the_weights_of_an_unbroken_one(
    attention: str,
    optimizer: dict[str, Any],
    schedule: str,
    tmp_path: Path,
    data: Path,
    recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = recipe(model={"attention": attention}, optimizer=optimizer, schedule={"name": schedule})
    unbroken = train(full, data, tmp_path / "unbroken")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        break_off(patch, step=4)
        train(full, data, tmp_path / "broken")
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    # Incomplete, as after a crash while saving: not resumed from.
    (tmp_path / "broken" / "checkpoint-3").mkdir()
    (tmp_path / "broken" / "checkpoint-3" / "model.safetensors").write_bytes(b"half")

    resumed = train(full, data, tmp_path / "broken", resume=True)

    assert_same_weights(tmp_path / "unbroken", tmp_path / "broken")
    assert resumed.loss_history == unbroken.loss_history
    again = train(full, data, tmp_path / "broken", resume=True)  # a finished run has nothing to do
    assert again.loss_history == unbroken.loss_history
    assert_same_weights(tmp_path / "unbroken", tmp_path / "broken")


def test_what_cannot_be_resumed(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    output = tmp_path / "run"
    with pytest.raises(OutputError, match="holds no run to resume"):
        train(recipe(), data, output, resume=True)
    train(recipe(training={"steps": 1}), data, output)
    changed = recipe(training={"steps": 2, "workers": 0, "save_steps": 7}, optimizer={"name": "adafactor"})
    with pytest.raises(RecipeError, match=r"another training\.steps, another optimizer\.name$"):
        train(changed, data, output, resume=True)
    (output / "checkpoint-1" / "trainer_state.json").write_text('{"global_step":')
    with pytest.raises(OutputError, match="no complete checkpoint"):
        train(recipe(training={"steps": 1}), data, output, resume=True)
    content = json.loads((data / "classes.json").read_text())
    (data / "classes.json").write_text(json.dumps({**content, "names": ["red", "green", "violet"]}))
    with pytest.raises(OutputError, match="other classes"):
        train(recipe(training={"steps": 1}), data, output, resume=True)


def test_another_run_is_kept_unless_overwritten(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    output, short = tmp_path / "run", recipe(training={"steps": 2, "save_steps": 1})
    train(short, data, output)
    (output / "notes.txt").write_text("mine")
    (output / "metrics.json").write_text("{}")
    before = weights(output)
    with pytest.raises(OutputError, match="holds another run"):
        train(short, data, output)
    shorter = recipe(training={"steps": 1, "seed": 3})
    with pytest.raises(DataError):
        train(shorter, tmp_path / "nowhere", output, overwrite=True)
    assert torch.equal(
        weights(output)["decode_head.classifier.weight"], before["decode_head.classifier.weight"]
    )
    train(shorter, data, output, overwrite=True)
    assert not (output / "checkpoint-2").exists()
    assert not (output / "metrics.json").exists()
    assert (output / "notes.txt").read_text() == "mine"
    assert len(list((output / "logs").iterdir())) == 1


def test_output_that_is_a_file(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: is not a folder"):
        train(recipe(), data, tmp_path / "file")


@pytest.mark.parametrize("place", ["checkpoint", "end"])
def test_a_full_disk_is_one_clear_line(
    place: str, tmp_path: Path, data: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CrissCrossSegformerForSemanticSegmentation.save_pretrained

    def save_pretrained(self: nn.Module, folder: Any, **kwargs: Any) -> None:
        original(self, folder, **kwargs)
        if (Path(folder).name == "checkpoint-4") == (place == "checkpoint") and Path(
            folder
        ).name != "checkpoint-2":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(CrissCrossSegformerForSemanticSegmentation, "save_pretrained", save_pretrained)
    full = recipe(training={"steps": 4 if place == "checkpoint" else 2})
    with pytest.raises(OutputError, match=r": cannot be written: No space left on device$"):
        train(full, data, tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "recipe.yaml",
        "classes.json",
        "origins.json",
        "training_data.json",
        "checkpoint-2",
        "logs",
    }


@pytest.mark.parametrize("what", ["loss", "gradient's norm"])
def test_a_run_that_diverges_stops_and_can_be_resumed(
    what: str, tmp_path: Path, data: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = modeling_ccsegformer.resized_cross_entropy, iter(range(100))

    def diverge(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
        loss = original(logits, labels, ignore_index)
        if next(calls) < 5:  # the fifth micro-batch ends, the sixth is in step 3
            return loss
        # The slope of the root at 0 is infinite, and the chain rule multiplies it by 0.
        return loss * torch.inf if what == "loss" else loss + (0 * logits.sum()).abs().sqrt()

    with monkeypatch.context() as patch:
        patch.setattr(modeling_ccsegformer, "resized_cross_entropy", diverge)
        with pytest.raises(TrainingError, match=rf"^step 3: the {what} is (inf|nan); lower optimizer"):
            train(recipe(), data, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run" / "checkpoint-2").values())
    train(recipe(), data, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(
    tmp_path: Path, data: Path, recipe: MakeRecipe
) -> None:
    for image in (data / "images" / "training").iterdir():
        image.write_bytes(b"not an image")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    threads = threading.enumerate()
    for folder in ("new", "kept"):
        with pytest.raises(DataError, match="not an image"):
            train(recipe(), data, tmp_path / folder)
        assert threading.enumerate() == threads  # otherwise TensorBoard's thread would write to deleted files
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["notes.txt"]


def test_epochs_become_steps(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    for epochs, steps in ((1, 3), (2, 5), (0.8, 2)):  # of 5 images, in batches of 2
        with_epochs = recipe(training={"steps": None, "epochs": epochs, "accumulation": 1})
        assert trainer_module._count_steps(with_epochs, 5) == steps
    assert (
        trainer_module._count_steps(
            recipe(training={"steps": None, "epochs": 0.1, "batch_size": 1, "accumulation": 1}), 30
        )
        == 3
    )


def test_pretrained_weights_and_the_report_s_freezing(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    plain = CrissCrossSegformerConfig.mit("b0", attention="efficient", num_labels=150).to_dict()
    plain.pop("model_type")
    pretrained = SegformerForSemanticSegmentation(SegformerForSemanticSegmentation.config_class(**plain))
    pretrained.save_pretrained(tmp_path / "pretrained")
    report = recipe(
        model={"pretrained": str(tmp_path / "pretrained"), "projection": "ccnet"},
        training={"freeze": "report"},
        optimizer={"name": "adafactor"},
    )
    result = train(report, data, tmp_path / "run")
    assert result.load_summary is not None
    assert any("attention.gamma" in name for name in result.load_summary.new)
    before = {key: value for key, value in pretrained.state_dict().items() if "attention" not in key}
    after = result.model.state_dict()
    moved = {name for name in before.keys() & after.keys() if after[name].shape != before[name].shape}
    assert moved == {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    for name, parameter in result.model.named_parameters():
        if name in before and name not in moved:
            assert torch.equal(before[name], after[name]) != name.startswith("decode_head."), name
        assert parameter.requires_grad == (name.startswith("decode_head.") or ".attention." in name)
    assert all(value.abs() > 0 for name, value in after.items() if name.endswith("gamma"))

    with pytest.raises(RecipeError, match=r"model\.size: b1 has hidden_sizes"):
        bigger = report.model_copy(update={"model": report.model.model_copy(update={"size": "b1"})})
        train(bigger, data, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_warm_up_as_long_as_the_run_is_said(
    tmp_path: Path, data: Path, recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    short = recipe(training={"steps": 2}, schedule={"name": "poly", "warmup_steps": 2})
    train(short, data, tmp_path / "run", progress=True)
    assert "schedule.warmup_steps: 2 is not below the run's 2 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "smaller"),
    [
        ("report", ["training.epochs=0.8", "transforms.5.sizes=[48, 64]"]),
        (
            "segformer",
            [
                *("training.steps=3", "training.batch_size=2", "schedule.warmup_steps=1"),
                *("transforms.0.scale=[128, 64]", "transforms.1.sizes=[64]"),
            ],
        ),
    ],
)
def test_the_literature_s_recipes_train(name: str, smaller: list[str], tmp_path: Path, data: Path) -> None:
    """Only sizes, lengths and the encoder change; that is an ImageNet classifier like nvidia/mit-b0."""
    plain = CrissCrossSegformerConfig.mit("b0", attention="efficient", num_labels=1000).to_dict()
    plain.pop("model_type")
    encoder = SegformerForImageClassification(SegformerForImageClassification.config_class(**plain))
    encoder.save_pretrained(tmp_path / "pretrained")
    overrides = [f"model.pretrained={tmp_path / 'pretrained'}", *smaller]
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.yaml", overrides)
    result = train(recipe, data, tmp_path / "run")
    assert result.load_summary is not None
    before, after = encoder.state_dict(), result.model.state_dict()
    taken_over = before.keys() & after.keys()
    assert any(".mlp." in key for key in taken_over)
    # The university report freezes the pretrained encoder; the paper trains it.
    unmoved = {key for key in taken_over if torch.equal(before[key], after[key])}
    assert unmoved == (taken_over if name == "report" else set())
    assert all(np.isfinite(loss) for _, loss in result.loss_history)


def test_what_the_machine_cannot_do(
    tmp_path: Path, data: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match=r"training\.precision: fp16 needs a GPU"):
            train(recipe(training={"precision": "fp16"}), data, tmp_path / "run")
    monkeypatch.setattr("transformers.TrainingArguments.world_size", 4)
    with pytest.raises(RecipeError, match=r"training\.accumulation: 2 micro-batches .* 4 processes"):
        train(recipe(), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bfloat16_trains_float32_weights(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    result = train(recipe(training={"steps": 2, "precision": "bf16"}), data, tmp_path / "run")
    exact = train(recipe(training={"steps": 2}), data, tmp_path / "exact")
    assert {parameter.dtype for parameter in result.model.parameters()} == {torch.float32}
    assert result.loss_history != exact.loss_history
    assert result.loss_history[0][1] == pytest.approx(exact.loss_history[0][1], rel=0.02)


def test_workers_change_neither_weights_nor_messages(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    for workers in (0, 2):
        train(recipe(training={"steps": 2, "workers": workers}), data, tmp_path / f"run{workers}")
    assert_same_weights(tmp_path / "run0", tmp_path / "run2")
    image = data / "images" / "training" / "3.png"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DataError) as error:
        train(recipe(training={"workers": 1}), data, tmp_path / "broken")
    assert str(error.value).startswith(str(image))
    assert "\n" not in str(error.value)
