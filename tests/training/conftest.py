import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccsegformer.models import configuration_ccsegformer
from ccsegformer.training.recipe import Recipe

COLORS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)], dtype=np.uint8)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A B0 that trains in milliseconds."""
    monkeypatch.setitem(configuration_ccsegformer._MIT, "b0", ((8, 16, 40, 64), (1, 1, 1, 1), 16))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five 64x64 images whose left and right parts are two of three colours, each colour a class."""
    root = tmp_path / "data"
    generator = np.random.default_rng(0)
    for kind in ("images", "annotations"):
        (root / kind / "training").mkdir(parents=True)
    for index in range(5):
        left, right = generator.permutation(3)[:2]
        mask = np.full((64, 64), left, dtype=np.uint8)
        mask[:, generator.integers(16, 48) :] = right
        image = COLORS[mask] + generator.integers(0, 40, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / "training" / f"{index}.png")
        Image.fromarray(mask).save(root / "annotations" / "training" / f"{index}.png")
    (root / "classes.json").write_text(json.dumps({"names": ["red", "green", "blue"], "ignore_index": 255}))
    return root


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """Make recipes of six steps of two micro-batches of two images, flipped at random."""

    def make(**changes: dict[str, Any]) -> Recipe:
        sections: dict[str, Any] = {
            "model": {},
            "transforms": [{"name": "horizontal_flip", "probability": 0.5}],
            "training": {"steps": 6, "batch_size": 2, "accumulation": 2, "save_steps": 2},
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"warmup_steps": 2},
            "images": {},
            "loss": {},
            "validation": {},
        }
        for section, values in changes.items():
            sections[section] = {**sections[section], **values}
        return Recipe.model_validate(sections)

    return make
