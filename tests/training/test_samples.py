"""Samples that a run chooses: without bad files, and more of those with rare classes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ccsegformer.data.chosen import BalancedImages
from ccsegformer.data.labels import Classes
from ccsegformer.data.objects import as_dataset
from ccsegformer.errors import DataError, RecipeError
from ccsegformer.training._survey import SURVEY
from ccsegformer.training.recipe import Recipe
from ccsegformer.training.trainer import train
from tests.training.test_labels import NAMES, write_scenes


def damage(data: Path) -> None:
    """Cut off a mask, put a wrong label into another, and text into an image, of five."""
    masks = data / "annotations" / "training"
    (masks / "0.png").write_bytes((masks / "0.png").read_bytes()[:60])
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(masks / "3.png")
    (data / "images" / "training" / "4.png").write_bytes(b"no image")


def skipping(recipe: Callable[..., Recipe], **training: Any) -> Recipe:
    settings = {"steps": 4, "save_steps": 2, "accumulation": 1, "skip_bad_files": True}
    return recipe(training=settings | training)


def same_weights(one: Path, other: Path) -> bool:
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.usefixtures("tiny")
def test_bad_files_are_left_out_listed_and_counted(
    tmp_path: Path, data: Path, recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(data)
    train(skipping(recipe), data, tmp_path / "run")
    said = capsys.readouterr().err
    assert "3 of 5 samples cannot be read and are left out:" in said
    for file in ("annotations/training/0.png", "annotations/training/3.png", "images/training/4.png"):
        assert said.count(str(data / file)) == 1
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    assert log["images"] == 2
    assert list(log["skipped_files"]) == ["0", "3", "4"]
    assert "label 9" in log["skipped_files"]["3"]
    for kind in ("images", "annotations"):  # the same run as without these files
        for name in ("0", "3", "4"):
            (data / kind / "training" / f"{name}.png").unlink()
    train(skipping(recipe, skip_bad_files=False), data, tmp_path / "clean", progress=False)
    assert same_weights(tmp_path / "run", tmp_path / "clean")


@pytest.mark.usefixtures("tiny")
def test_by_default_a_bad_file_ends_the_run(
    tmp_path: Path, data: Path, recipe: Callable[..., Recipe]
) -> None:
    damage(data)
    with pytest.raises(DataError, match=r"\.png: "):
        train(skipping(recipe, skip_bad_files=False), data, tmp_path / "run", progress=False)
    balanced = recipe(training={"steps": 1}, images={"rare_classes": 0.5})
    with pytest.raises(DataError, match=r"0\.png: damaged image"):
        train(balanced, data, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    for path in (data / "images" / "training").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 5 samples can be read; the first: .*0\.png"):
        train(skipping(recipe), data, tmp_path / "run", progress=False)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_chooses_the_same_samples(
    tmp_path: Path, data: Path, recipe: Callable[..., Recipe], workers: int
) -> None:
    damage(data)
    chosen = skipping(recipe, workers=workers).model_copy(
        update={"images": recipe(images={"rare_classes": 0.7}).images}
    )
    train(chosen, data, tmp_path / "whole", progress=False)
    train(chosen, data, tmp_path / "part", progress=False)
    (tmp_path / "part" / "model.safetensors").unlink()
    for checkpoint in (tmp_path / "part").glob("checkpoint-4/trainer_state.json"):
        checkpoint.unlink()
    kept = (tmp_path / "part" / SURVEY).read_bytes()
    train(chosen, data, tmp_path / "part", resume=True, progress=False)
    assert (tmp_path / "part" / SURVEY).read_bytes() == kept
    assert same_weights(tmp_path / "whole", tmp_path / "part")


@pytest.mark.usefixtures("tiny")
def test_a_resumed_run_takes_the_survey_that_it_began_with(
    tmp_path: Path, data: Path, recipe: Callable[..., Recipe]
) -> None:
    output = tmp_path / "run"
    train(skipping(recipe, steps=1), data, output, progress=False)
    content = json.loads((output / SURVEY).read_text())
    content |= {"skipped": {"2": "was bad then"}, "kept": [0, 1, 3, 4]}
    (output / SURVEY).write_text(json.dumps(content))
    train(skipping(recipe, steps=1), data, output, resume=True, progress=False)
    assert json.loads((output / "training_log.json").read_text())["images"] == 4
    (output / SURVEY).write_text("{")
    with pytest.raises(DataError, match=r"training_samples\.json: cannot be read"):
        train(skipping(recipe, steps=1), data, output, resume=True, progress=False)
    train(skipping(recipe, steps=1), data, output, overwrite=True, progress=False)


class Item(dict[str, Any]):
    """Sample of one label."""

    def __init__(self, label: int) -> None:
        mask = np.full((8, 8), label, np.uint8)
        super().__init__(image=np.full((8, 8, 3), label, np.uint8), mask=mask)


def test_rare_classes_are_drawn_as_often_as_others() -> None:
    classes = Classes(("common", "rare", "never", "medium"))
    images = as_dataset([Item(0) for _ in range(97)] + [Item(1), Item(3), Item(3)], classes)
    counts = [{int(images[index]["mask"][0, 0]): 64} for index in range(100)]

    def drawn(share: float) -> np.ndarray:
        balanced, generator = BalancedImages(images, share, counts), torch.Generator().manual_seed(0)
        labels = [int(balanced.draw(n % 100, generator)["mask"][0, 0]) for n in range(1500)]
        return np.bincount(labels, minlength=4) / len(labels)

    assert drawn(0).tolist() == [0.97, 0.01, 0, 0.02]
    assert drawn(1) == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.04)
    assert drawn(0.5) == pytest.approx([0.65, 0.17, 0, 0.18], abs=0.04)
    with pytest.raises(DataError, match="no pixel is labelled"):
        BalancedImages(images, 0.5, [{}] * 100)


@pytest.mark.usefixtures("tiny")
def test_objects_and_parquet_files_are_chosen_from(
    tmp_path: Path, data: Path, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    bad = {"image": np.zeros((8, 8, 3), np.uint8), "mask": np.full((8, 8), 7)}
    items = [bad, Item(0), Item(1), {**Item(0), "image": np.zeros((8, 8, 4), np.uint8)}]
    with pytest.raises(DataError, match=r"list\[0\]: label 7"):
        once = recipe(training={"steps": 1})
        train(once, items, tmp_path / "object", classes=list(NAMES), progress=False)
    both = skipping(recipe, steps=1).model_copy(
        update={"images": recipe(images={"rare_classes": 1.0}).images}
    )
    train(both, items, tmp_path / "object", classes=list(NAMES), progress=False)
    log = json.loads((tmp_path / "object" / "training_log.json").read_text())
    assert log["images"] == 2
    label, bands = log["skipped_files"].values()
    assert "list[0]: label 7" in label and "4 bands of uint8, but sample 1 has 3 bands" in bands
    damage(data)
    rows = {
        column: [path.read_bytes() for path in sorted((data / kind / "training").iterdir())]
        for column, kind in (("image", "images"), ("annotation", "annotations"))
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "parquet" / "train-0.parquet")
    (tmp_path / "parquet" / "classes.json").write_bytes((data / "classes.json").read_bytes())
    train(both, tmp_path / "parquet", tmp_path / "table", progress=False)
    log = json.loads((tmp_path / "table" / "training_log.json").read_text())
    assert list(log["skipped_files"]) == ["training-000000", "training-000003", "training-000004"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": {"rare_classes": 0.5}},
            "is for images, .* scenes; use windows.rare_classes",
        ),
        ({"training": {"skip_bad_files": True}}, "training.skip_bad_files: is for images, but .* scenes"),
    ],
)
def test_scenes_refuse_the_keys_of_images(
    tmp_path: Path, recipe: Callable[..., Recipe], changes: dict[str, Any], message: str
) -> None:
    write_scenes(tmp_path / "data", "1 and 255")
    with pytest.raises(RecipeError, match=message):
        train(recipe(**changes), tmp_path / "data", tmp_path / "run", progress=False)


@pytest.mark.usefixtures("tiny")
def test_balanced_weights_are_those_of_the_samples_kept(
    tmp_path: Path, data: Path, recipe: Callable[..., Recipe]
) -> None:
    damage(data)
    weights = []
    for skip in (True, False):
        balanced = recipe(training={"steps": 1, "skip_bad_files": skip}, loss={"class_weights": "balanced"})
        train(balanced, data, tmp_path / f"{skip}", progress=False)
        log = json.loads((tmp_path / f"{skip}" / "training_log.json").read_text())
        weights.append(log["class_weights"])
        for kind in ("images", "annotations"):
            for name in ("0", "3", "4"):
                (data / kind / "training" / f"{name}.png").unlink(missing_ok=True)
    assert weights[0] == weights[1] and len(set(weights[0].values())) > 1
