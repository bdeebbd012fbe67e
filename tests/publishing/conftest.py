"""A trained and scored run, and a stand-in for the hub."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import transformers.utils.hub
from PIL import Image

from ccsegformer.config.protocol import DEFAULT
from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.labelling.engine import open_engine
from ccsegformer.labelling.loading import load_model
from ccsegformer.models import configuration_ccsegformer
from ccsegformer.report.evaluation import write_evaluation
from ccsegformer.sources import open_dataset
from ccsegformer.training.recipe import Recipe
from ccsegformer.training.trainer import train
from tests.hub import TOKEN, Hub, served_hub

CLASSES = Classes(("ground", "a|b <i>", "never seen"))


@pytest.fixture(scope="session")
def secret_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two of three classes, in a folder whose path nobody should see."""
    root = tmp_path_factory.mktemp("client-x") / "fields"
    generator = np.random.default_rng(0)
    for split, count in (("training", 4), ("validation", 12)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((32, 48), dtype=np.uint8)
            mask[:, generator.integers(8, 40) :] = 1
            image = (generator.integers(0, 60, (32, 48, 3)) + 150 * mask[..., None]).astype(np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"secret{index}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"secret{index}.png")
    write_classes(CLASSES, root / "classes.json")
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, secret_data: Path) -> Path:
    """A run with criss-cross attention."""
    return train_small(secret_data, tmp_path_factory.mktemp("runs") / "mine", attention="criss_cross")


@pytest.fixture(scope="session")
def scored_once(trained: Path, secret_data: Path) -> Path:
    """The same run with its scores."""
    folder = shutil.copytree(trained, trained.parent / "scored")
    score(folder, secret_data)
    return folder


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    """A run without scores, to change."""
    return shutil.copytree(trained, tmp_path / "mine")


@pytest.fixture
def scored(scored_once: Path, tmp_path: Path) -> Path:
    """A run with scores, to change."""
    return shutil.copytree(scored_once, tmp_path / "scored")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub at which this process is logged in."""
    with served_hub() as served:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.address)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # else the Trainer's keeps its address
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def train_small(data: Path, output: Path, attention: str, pretrained: str | None = None) -> Path:
    """Train a tiny model for two steps."""
    recipe = Recipe.model_validate(
        {
            "model": {"attention": attention, "pretrained": pretrained},
            "training": {"steps": 2, "batch_size": 2},
            "transforms": [{"name": "random_crop", "sizes": [32]}],
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(configuration_ccsegformer._MIT, "b0", ((8, 16, 40, 64), (1, 1, 1, 1), 16))
        train(recipe, data, output, progress=False)
    return output


def score(folder: Path, data: Path, split: str = "validation") -> None:
    """Score a run as `ccsegformer evaluate RUN --output RUN` does."""
    dataset = open_dataset(data, split)
    engine = open_engine(load_model(folder)[0], "torch")
    names = {"model": str(folder), "data": str(data), "split": split}
    write_evaluation(folder, evaluate(engine, dataset), engine, dataset, DEFAULT, **names, command=["x"])
