"""A tiny teacher, and a folder of images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from tests.models.test_modeling import shake, tiny


@pytest.fixture
def teacher() -> CrissCrossSegformerForSemanticSegmentation:
    model = tiny(attention="efficient").eval()
    shake(model)
    return model


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 photographs of 48 x 40 pixels: a rectangle of one colour on another."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(20):
        pixels = np.full((40, 48, 3), generator.integers(0, 256, 3), np.uint8)
        top, left = generator.integers(0, 24, 2)
        pixels[top : top + 16, left : left + 20] = generator.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder
