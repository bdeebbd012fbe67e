"""A data set object scores as the folder of the same images does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import DataError
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

NAMES = ("x", "y")


class Pairs(Dataset[Any]):
    def __init__(self, root: Path) -> None:
        self.root = root

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return tuple(
            Image.open(self.root / kind / "validation" / f"{index}.png") for kind in ("images", "annotations")
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for kind, shape in (("images", (40, 36, 3)), ("annotations", (40, 36))):
        (tmp_path / kind / "validation").mkdir(parents=True)
        for index in range(3):
            pixels = generator.integers(0, 2 if kind == "annotations" else 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / "validation" / f"{index}.png")
    write_classes(Classes(NAMES), tmp_path / "classes.json")
    return tmp_path


def make_model(**options: Any) -> CrissCrossSegformerForSemanticSegmentation:
    torch.manual_seed(0)
    small = {"hidden_sizes": [8, 16, 40, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
    return CrissCrossSegformerForSemanticSegmentation(CrissCrossSegformerConfig(**small, **options)).eval()


def test_the_scores_are_those_of_the_folder(folder: Path) -> None:
    model = make_model(num_labels=2)
    expected = evaluate(model, folder)
    assert expected == evaluate(model, str(folder), split="validation")
    assert list(expected.image_iou) == ["0", "1", "2"]
    scored = evaluate(model, Pairs(folder), classes=NAMES)
    assert (scored.metrics, scored.confusion) == (expected.metrics, expected.confusion)
    assert list(scored.image_iou) == [f"Pairs-{index:06}" for index in range(3)]
    assert list(scored.image_iou.values()) == list(expected.image_iou.values())
    with pytest.raises(DataError, match="no such folder"):
        evaluate(model, folder, split="test")


def test_classes_may_be_the_model_s(folder: Path) -> None:
    model = make_model(id2label={0: "left", 1: "right"}, label2id={"left": 0, "right": 1})
    assert list(evaluate(model, Pairs(folder)).metrics.per_class) == ["left", "right"]
    assert list(evaluate(model, Pairs(folder), classes=["a", "b"]).metrics.per_class) == ["a", "b"]
    with pytest.raises(DataError, match="the model has 2 classes, but the data set has 3"):
        evaluate(model, Pairs(folder), classes=["a", "b", "c"])
    theirs = SegformerForSemanticSegmentation(
        SegformerConfig(id2label={0: "l", 1: "r"}, hidden_sizes=[8, 16, 40, 32], depths=[1] * 4)
    )
    assert list(evaluate(theirs, Pairs(folder)).metrics.per_class) == ["l", "r"]
    model.config.id2label = None
    with pytest.raises(DataError, match=r"^Pairs: has no class names; pass classes="):
        evaluate(model, Pairs(folder))
