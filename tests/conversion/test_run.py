"""A whole conversion: its folder, its record, and that an interrupted one ends as an unbroken one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ccsegformer.conversion import distillation, run
from ccsegformer.conversion import images as images_module
from ccsegformer.conversion.run import convert
from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import CheckpointError, DataError, OutputError
from ccsegformer.labelling.loading import load_model
from tests.models.test_modeling import shake, tiny

OPTIONS: dict[str, Any] = {"size": 32, "steps": 3, "batch": 1, "layer_steps": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    model = tiny(attention="efficient")
    shake(model)
    model.save_pretrained(folder)
    write_classes(Classes(("a", "b", "c"), ignore_index=100), folder / "classes.json")
    return folder


def make_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run, "CALIBRATION", 4)
    patch.setattr(run, "CHOICE", 2)
    patch.setattr(images_module, "HELD_BACK", (2, 2))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def unbroken(checkpoint: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "model"
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        convert(checkpoint, images, output, **OPTIONS)
    return output


def test_a_conversion_is_a_model_folder_with_a_record(unbroken: Path, checkpoint: Path, images: Path) -> None:
    assert sorted(path.name for path in unbroken.iterdir()) == [
        *("classes.json", "config.json", "conversion.json", "model.safetensors", "origins.json"),
        "preprocessor_config.json",
    ]
    model, classes = load_model(unbroken)
    assert model.config.stage_attention == run.ATTENTION and classes.ignore_index == 100
    assert "use_cache" not in json.loads((unbroken / "config.json").read_text())
    record = json.loads((unbroken / "conversion.json").read_text())
    assert (record["source"], record["images"], record["size"]) == (str(checkpoint), str(images), 32)
    assert len(record["held_back"]) == 2 and [step for step, _ in record["loss"]] == [1, 2, 3]
    stages = record["stages"]
    assert list(stages) == ["copied", "folded", "ridge", "layerwise", "distilled"]
    errors = [sum(of["attention_errors"].values()) for of in stages.values()]
    assert errors[2] < errors[1]  # ridge regression brought attention closer than folding
    assert set(stages["distilled"]["agreement"]["per_class"]) == {"LABEL_0", "LABEL_1", "LABEL_2"}


@pytest.mark.parametrize("place", ["layers", "distillation"])
def test_an_interrupted_conversion_ends_as_an_unbroken_one(
    place: str,
    unbroken: Path,
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "SAVE_STEPS", 1)
        if place == "layers":
            patch.setattr(run, "distill", interrupt)
        else:
            patch.setattr(distillation.Distiller, "compute_loss", interrupted_at_step(3))
        with pytest.raises(KeyboardInterrupt):
            convert(checkpoint, images, tmp_path / "model", **OPTIONS)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [".conversion"]
    with pytest.raises(OutputError, match="has not finished; continue it with --resume"):
        convert(checkpoint, images, tmp_path / "model", **OPTIONS)
    with pytest.raises(OutputError, match="has another size: 32, not 64"):
        convert(checkpoint, images, tmp_path / "model", **{**OPTIONS, "size": 64}, resume=True)
    monkeypatch.setattr(run, "fit_ridge", interrupt)  # what is done is not done again
    convert(checkpoint, images, tmp_path / "model", **OPTIONS, resume=True)
    found, expected = (load_file(of / "model.safetensors") for of in (tmp_path / "model", unbroken))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        path.name for path in unbroken.iterdir()
    }


def test_nothing_is_left_of_a_conversion_that_fails_early(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "fit_ridge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, images, tmp_path / "model", **OPTIONS)
    assert not any(tmp_path.iterdir())


def test_a_control_without_attention_is_distilled_alone(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    done = convert(checkpoint, images, tmp_path / "model", attention="none", **OPTIONS)
    assert done.model.config.stage_attention == ("none",) * 4
    assert list(done.record["stages"]) == ["copied", "distilled"]


def test_both_models_are_scored_on_labels(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    data = labelled(tmp_path / "data", images, ["a", "b", "c"])
    done = convert(checkpoint, images, tmp_path / "model", data=data, **OPTIONS)
    scores = done.record["scores"]
    assert scores["images"] == 10 and scores["interval"][0] <= scores["difference"] <= scores["interval"][1]
    assert scores["difference"] == pytest.approx(scores["student"] - scores["teacher"])
    kept = done.record["stages"][done.record["kept"]]
    assert kept["mean_iou"] == pytest.approx(scores["student"], abs=1e-6)


def test_a_distillation_that_does_harm_is_undone(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def harm(teacher: nn.Module, student: nn.Module, *_: Any, **__: Any) -> list[tuple[int, float]]:
        starts.append({name: weight.clone() for name, weight in student.state_dict().items()})
        with torch.no_grad():
            student.decode_head.classifier.weight.neg_()
        return [(1, 0.0)]

    monkeypatch.setattr(run, "distill", harm)
    done = convert(checkpoint, images, tmp_path / "model", **OPTIONS)
    assert done.record["kept"] == "layerwise"
    assert done.agreement._asdict() == done.record["stages"]["layerwise"]["agreement"]
    saved = load_model(tmp_path / "model")[0].state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in starts[0].items())


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"size": 48}, DataError, "size: must be a multiple of 32 pixels, not 48"),
        ({"teacher_window": 100}, DataError, "teacher_window: must be a multiple of 32"),
        ({"attention": ["criss_cross"] * 3}, CheckpointError, "3 names for the 4 stages"),
        ({"attention": "efficient"}, CheckpointError, "nothing to convert"),
        ({"resume": True}, OutputError, "holds no conversion to resume"),
    ],
)
def test_wrong_options_are_said_before_anything_is_written(
    options: dict, error: type[Exception], problem: str, checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=problem):
        convert(checkpoint, images, tmp_path / "model", **{**OPTIONS, **options})
    assert not any(tmp_path.iterdir())


def test_other_classes_and_an_output_that_exists_are_refused(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    data = labelled(tmp_path / "data", images, ["a", "b"])
    with pytest.raises(DataError, match=r"2 classes, but .* has 3"):
        convert(checkpoint, images, tmp_path / "model", data=data, **OPTIONS)
    with pytest.raises(OutputError, match="exists; choose another folder"):
        convert(checkpoint, images, data, **OPTIONS)


def labelled(folder: Path, images: Path, names: list[str]) -> Path:
    """Make a data set of ten of the images, labelled at random by halves."""
    from PIL import Image

    for kind in ("images", "annotations"):
        (folder / kind / "validation").mkdir(parents=True)
    for index, path in enumerate(sorted(images.iterdir())[:10]):
        shutil.copy(path, folder / "images/validation" / path.name)
        mask = Image.new("L", (48, 40), index % 2)
        mask.paste((index + 1) % 2, (0, 0, 24, 40))
        mask.save(folder / "annotations/validation" / path.name)
    (folder / "classes.json").write_text(json.dumps({"names": names, "ignore_index": 255}))
    return folder


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def interrupted_at_step(last: int) -> Any:
    """Return a `compute_loss` that is interrupted in step `last`."""
    compute = distillation.Distiller.compute_loss

    def compute_or_stop(self: Any, model: nn.Module, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step + 1 == last:
            raise KeyboardInterrupt
        return compute(self, model, *arguments, **options)

    return compute_or_stop
