"""Which weights a model's weights derive from, because their licence goes with them."""

import json
from pathlib import Path

from ccsegformer.config.yaml_files import read_yaml
from ccsegformer.errors import CheckpointError, RecipeError
from ccsegformer.files import write_atomically

ORIGINS = "origins.json"
RANDOM = "random weights"
HUB_PREFIX = "hf://"
"""Prefix of names on the Hugging Face hub."""


def weight_origins(source: str | Path | None) -> tuple[str, ...]:
    """Return a model and, behind it, those whose weights it was trained or converted from.

    The last is `RANDOM`, a name on the hub with `HUB_PREFIX` before it, or a folder or file that does not say
    where its weights are from.

    Args:
        source: Folder of a model or of a checkpoint in a run, or name on the hub; None for no weights.

    Raises:
        CheckpointError: The record of a folder cannot be read.
    """
    if source is None:
        return (RANDOM,)
    folder = Path(source)
    if not folder.is_dir():
        return (f"{HUB_PREFIX}{source}",)
    return (str(source), *(recorded_origins(folder) or ()))


def recorded_origins(folder: Path) -> tuple[str, ...] | None:
    """Return what a folder says of where its weights are from; None if it says nothing.

    Runs of earlier versions say it in their recipe alone.

    Raises:
        CheckpointError: The record cannot be read.
    """
    homes = (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,)
    for home in homes:
        if (home / ORIGINS).is_file():
            return _read_origins(home / ORIGINS)
        if (home / "recipe.yaml").is_file():
            try:
                section = read_yaml(home / "recipe.yaml", "a recipe").get("model")
            except RecipeError as error:
                raise CheckpointError(str(error)) from error
            pretrained = section.get("pretrained") if isinstance(section, dict) else None
            if pretrained is None:
                return (RANDOM,)
            # Whether a folder that is gone was a name on the hub is not known.
            return weight_origins(pretrained) if Path(pretrained).is_dir() else (str(pretrained),)
    return None


def write_origins(folder: Path, origins: tuple[str, ...]) -> None:
    """Write the record that `recorded_origins` reads.

    Raises:
        OutputError: It cannot be written.
    """
    content = {"weights_from": list(origins)}
    write_atomically(folder / ORIGINS, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _read_origins(path: Path) -> tuple[str, ...]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weights_from"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: 'weights_from' must be a list of names")
    return tuple(names)
