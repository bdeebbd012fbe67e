"""Runs kept on disk, so that an interrupted study can resume."""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from ccsegformer.files import write_atomically
from studies.harness import Matrices, Model, Plan, build, score, train

PRETRAINED = "pretrained"
"""Name of the training with efficient attention that other runs of the same seed start from."""


def trained_weights(
    folder: Path, name: str, plan: Plan, dataset: Any, seed: int, start: Mapping[str, Tensor] | None
) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts of a training at "half" and "end"; train first unless they are on disk."""
    paths = {when: folder / f"{name}-{when}.safetensors" for when in ("half", "end")}
    if not paths["end"].is_file():  # written last
        folder.mkdir(parents=True, exist_ok=True)
        model = build(plan, dataset.classes, seed, start)
        for step in chain([0], train(model, dataset, plan, seed) if plan.steps else ()):
            if step == plan.steps // 2:
                _save(model, paths["half"])
        _save(model, paths["end"])
    return {when: load_file(path) for when, path in paths.items()}


def scored(
    folder: Path, name: str, plan: Plan, weights: Mapping[str, Tensor], dataset: Any, seed: int, **how: Any
) -> Matrices:
    """Return the confusion matrices of these weights on `dataset`; score first unless they are on disk."""
    path = folder / f"{name}.npy"
    if not path.is_file():
        model = build(replace(plan, keep=None), dataset.classes, seed, None)
        model.load_state_dict(dict(weights))
        buffer = io.BytesIO()
        np.save(buffer, score(model, dataset, plan, **how))
        write_atomically(path, buffer.getvalue())
    matrices: Matrices = np.load(path)
    return matrices


def check_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Store the settings in `output`; exit if it holds runs with others."""
    path = output / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != settings:
        raise SystemExit(f"{path}: holds runs with other settings; choose another --output")
    write_json(settings, path)


def write_json(content: Any, path: Path) -> None:
    """Write a JSON file, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _save(model: Model, path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial)
    partial.replace(path)
