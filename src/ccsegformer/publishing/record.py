"""Read what a model's folder says of itself: network, data, recipe, scores, origins of the weights."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from ccsegformer.config.yaml_files import read_yaml
from ccsegformer.data.labels import Classes
from ccsegformer.errors import CheckpointError, DataError
from ccsegformer.files import digest_of
from ccsegformer.labelling.loading import load_model
from ccsegformer.models import CrissCrossSegformerConfig
from ccsegformer.models.origins import recorded_origins

WEIGHTS_FILE = "model.safetensors"


class ModelRecord(NamedTuple):
    """What a model's folder holds.

    Attributes:
        config: Configuration of the model.
        parameters: Number of its parameters.
        classes: Classes of the model.
        origins: Where the weights are from; None if the folder does not say it.
        recipe: Contents of recipe.yaml, or None.
        log: Contents of training_log.json, or None.
        conversion: Contents of conversion.json, or None.
        metrics: Contents of metrics.json, which are scores of these weights, or None.
        samples: Samples of the training data, or None.
    """

    config: CrissCrossSegformerConfig
    parameters: int
    classes: Classes
    origins: tuple[str, ...] | None
    recipe: dict[str, Any] | None
    log: dict[str, Any] | None
    conversion: dict[str, Any] | None
    metrics: dict[str, Any] | None
    samples: int | None

    @property
    def is_plain(self) -> bool:
        """Whether the model is a SegFormer, which transformers loads alone."""
        return set(self.config.stage_attention) == {"efficient"}


def read_record(folder: str | Path) -> ModelRecord:
    """Read the folder of a run, of a conversion, or of any trained SegFormer.

    Raises:
        CheckpointError: It holds no trained model, or a damaged record.
        DataError: metrics.json scores other weights, or classes.json is wrong.
        RecipeError: recipe.yaml cannot be read.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder}: holds no trained model: {WEIGHTS_FILE} is missing")
    model, classes = load_model(folder, device="cpu")
    recipe = folder / "recipe.yaml"
    data = _read_object(folder / "training_data.json")
    return ModelRecord(
        model.config,
        model.num_parameters(),
        classes,
        recorded_origins(folder),
        read_yaml(recipe, "a recipe") if recipe.is_file() else None,
        _read_object(folder / "training_log.json"),
        _read_object(folder / "conversion.json"),
        _read_metrics(folder),
        data["samples"] if data else None,
    )


def _read_metrics(folder: Path) -> dict[str, Any] | None:
    """Read the scores, and check that they are of these weights."""
    path = folder / "metrics.json"
    metrics = _read_object(path)
    if metrics is None:
        return None
    again = f"score them again with `ccsegformer evaluate {folder} --data DATA --output {folder}`"
    scored = metrics.get("scored")
    if not scored:
        raise DataError(f"{path}: does not say which weights it scores: {again}")
    if scored["weights_sha256"] != digest_of(folder / WEIGHTS_FILE):
        raise DataError(f"{path}: scores other weights ({scored['model']}): {again}")
    return metrics


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold an object")
    return content
