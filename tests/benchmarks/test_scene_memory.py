"""The scenes of the memory benchmark, and the script that maps them."""

import ast
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import rasterio

from benchmarks.scene_memory import BLOCK, RUN, write_scene


def test_the_script_imports_names_that_exist() -> None:
    imports = [node for node in ast.walk(ast.parse(RUN)) if isinstance(node, ast.ImportFrom)]
    assert len(imports) > 3
    for node in imports:
        for alias in node.names:
            assert hasattr(import_module(str(node.module)), alias.name), ast.unparse(node)


def test_a_sparse_scene_has_data_in_its_first_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    assert write_scene(path, 3 * BLOCK, 4 * BLOCK, 0.0) == pytest.approx(6 / 12)
    with rasterio.open(path) as source:
        known = source.read_masks(1).astype(bool).reshape(3, BLOCK, 4, BLOCK).all(axis=(1, 3))
    expected = np.zeros((3, 4), dtype=bool)
    expected[0], expected[:, 0] = True, True
    assert (known == expected).all()
