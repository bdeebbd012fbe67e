"""Masks that cannot teach end the run or are said, with the names of the classes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from datasets import Dataset as Rows
from PIL import Image

from ccsegformer.errors import DataError
from ccsegformer.training import _label_counts
from ccsegformer.training._label_counts import count_labels
from ccsegformer.training.recipe import Recipe
from ccsegformer.training.trainer import train

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")
NAMES = ["background", "lesion"]


def mask_of(kind: str, index: int) -> np.ndarray:
    """Return a mask (64, 64): what people take for background and lesion, and others that teach nothing."""
    mask = np.zeros((64, 64), dtype=np.uint8)
    if kind == "0 and 255":
        mask[:, 20 + index :] = 255
    elif kind == "255 alone":
        mask[:] = 255
    elif kind == "1 and 255":
        mask[:], mask[:16] = 1, 255
    return mask


def write_images(root: Path, kind: str) -> Path:
    for folder in ("images/training", "annotations/training"):
        (root / folder).mkdir(parents=True)
    for index in range(4):
        noise = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "images" / "training" / f"{index}.png")
        Image.fromarray(mask_of(kind, index)).save(root / "annotations" / "training" / f"{index}.png")
    return with_classes(root)


def write_parquet(root: Path, kind: str) -> Path:
    folder = write_images(root / "files", kind)
    rows = {
        column: [path.read_bytes() for path in sorted((folder / kind / "training").iterdir())]
        for column, kind in (("image", "images"), ("annotation", "annotations"))
    }
    Rows.from_dict(rows).to_parquet(root / "parquet" / "train-0.parquet")
    return with_classes(root / "parquet")


def write_scenes(root: Path, kind: str) -> Path:
    (root / "training").mkdir(parents=True)
    grid = {"crs": "EPSG:32633", "transform": Affine(1, 0, 5e5, 0, -1, 5e6), "driver": "GTiff"}
    bands = np.random.default_rng(0).integers(1, 255, (3, 64, 64), dtype=np.uint8)
    for name, array in (("s.tif", bands), ("s_mask.tif", mask_of(kind, 0)[None])):
        shape = {"count": len(array), "height": 64, "width": 64, "dtype": "uint8"}
        with rasterio.open(root / "training" / name, "w", **grid, **shape) as target:
            target.write(array)
    return with_classes(root)


def with_classes(root: Path, names: list[str] = NAMES) -> Path:
    (root / "classes.json").write_text(json.dumps({"names": names, "ignore_index": 255}))
    return root


WRITERS = {"images": write_images, "parquet": write_parquet, "scenes": write_scenes}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("0 and 255", r"one class only, 'background' \(label 0\); \d+\.\d% .* if 255 marks 'lesion'"),
        ("255 alone", "no labelled pixel|nothing but nodata"),
        ("0 alone", r"one class only, 'background' \(label 0\), in every pixel"),
        ("1 and 255", r"one class only, 'lesion' .* 25% .* if 255 marks 'background', save it as 0"),
    ],
)
def test_masks_of_at_most_one_class_end_the_run(
    form: str, kind: str, says: str, tmp_path: Path, recipe: MakeRecipe
) -> None:
    data = WRITERS[form](tmp_path / "data", kind)
    with pytest.raises(DataError, match=says) as caught:
        train(recipe(), data, tmp_path / "run", progress=False)
    assert str(caught.value).startswith(str(data)) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_objects_are_counted_in_worker_processes(tmp_path: Path, recipe: MakeRecipe) -> None:
    pairs = [
        (torch.zeros(3, 64, 64, dtype=torch.uint8), torch.from_numpy(mask_of("0 and 255", i)))
        for i in range(4)
    ]
    with pytest.raises(DataError, match=r"^list object, 4 samples: the first 4 training masks hold one"):
        train(recipe(training={"workers": 2}), pairs, tmp_path / "run", classes=NAMES, progress=False)


def test_a_long_epoch_is_not_waited_for(
    tmp_path: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_images(tmp_path / "data", "0 and 255")
    short = recipe(training={"steps": 1, "batch_size": 1, "accumulation": 1, "save_steps": 1})
    train(short, data, tmp_path / "too-few", progress=False)  # the other masks may hold more
    assert "the only training mask holds one class only" in capsys.readouterr().err
    monkeypatch.setattr(_label_counts, "ENOUGH_SAMPLES", 1)
    with pytest.raises(DataError, match="the only training mask"):
        train(short, data, tmp_path / "run", progress=False)


def test_absent_classes_and_a_high_ignored_share_are_said_by_name(
    tmp_path: Path, data: Path, recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    with_classes(data, ["red", "green", "blue", "mauve", "teal"])
    for path in (data / "annotations" / "training").iterdir():
        mask = np.array(Image.open(path))
        mask[:40] = 255
        Image.fromarray(mask).save(path)
    train(recipe(), data, tmp_path / "run", progress=False)
    assert capsys.readouterr().err == (
        f"{data}: 2 classes occur in none of 8 training masks, so cannot be learned: mauve, teal\n"
        f"{data}: 62% of the pixels in 8 training masks are ignored (label 255, or no data)\n"
    )
    labels = json.loads((tmp_path / "run" / "training_log.json").read_text())["labels"]
    assert labels["classes_in_no_mask"] == ["mauve", "teal"]
    assert labels["samples"] == 24
    assert labels["ignored_pixels"] == 24 * 40 * 64
    assert sum(labels["pixels"].values()) == 24 * 24 * 64


def test_a_resumed_run_counts_on(tmp_path: Path, data: Path, recipe: MakeRecipe) -> None:
    short, log = recipe(training={"steps": 3, "save_steps": 2}), tmp_path / "run" / "training_log.json"
    train(short, data, tmp_path / "run", progress=False)
    whole = json.loads(log.read_text())["labels"]
    (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").unlink()
    train(short, data, tmp_path / "run", resume=True, progress=False)
    assert json.loads(log.read_text())["labels"] == whole and whole["samples"] == 12


def test_labels_are_counted() -> None:
    mask = torch.tensor([[0, 2, 2], [255, 7, 65535]], dtype=torch.int32)
    assert count_labels(mask, 3).tolist() == [1, 0, 2, 3]
    assert count_labels(torch.tensor([[-1, 1]]), 2).tolist() == [0, 1, 1]
