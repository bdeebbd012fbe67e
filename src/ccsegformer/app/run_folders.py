"""Runs in a folder: what their files say, also of those that are damaged or not finished."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ccsegformer.errors import CCSegformerError, DataError
from ccsegformer.training.recipe import Recipe, load_recipe

DEPTH = 3
"""Folders within folders to look into."""
MOST_RUNS = 500
Value = TypeVar("Value")
MARKS = ("recipe.yaml", "conversion.json", "metrics.json")
"""Files that make a folder a run."""


def run_names(root: Path) -> list[str]:
    """Return the runs below a folder, as paths relative to it, the latest first."""
    found = {path.parent for path in _files(root, DEPTH) if path.name in MARKS}
    latest = sorted(found, key=lambda folder: (-_changed_at(folder), str(folder)))
    return [folder.relative_to(root).as_posix() for folder in latest[:MOST_RUNS]]


def run_folder(root: Path, name: str) -> Path:
    """Return the folder of a run in the list.

    Raises:
        DataError: It is not in the list, such as a path that leads elsewhere.
    """
    if name not in run_names(root):
        raise DataError(f"{name}: no such run in {root}")
    return root / name


def summarize_run(root: Path, name: str) -> dict[str, Any]:
    """Return a line of the list as JSON values; `problem` says what cannot be read."""
    folder, problems = root / name, list[str]()
    recipe = _tried(lambda: _recipe(folder), problems)
    scores = _tried(lambda: _json(folder / "metrics.json"), problems) or {}
    state = "trained" if (folder / "model.safetensors").is_file() else "not finished" if recipe else ""
    model = recipe and f"{recipe.model.size.upper()}, {_attention_words(recipe.model.attention)}"
    return {
        "name": name,
        "modified": _changed_at(folder),
        "state": state,
        "model": model,
        "data": recipe.data if recipe else None,
        "score": scores.get("mean_iou"),
        "interval": scores.get("mean_iou_interval"),
        "problem": "; ".join(problems),
    }


def describe_run(root: Path, name: str) -> dict[str, Any]:
    """Return everything that the page shows of a run as JSON values.

    `loss` is a list of (step, loss), `classes` the IoU of each class or null, `settings` the recipe's.
    """
    folder, problems = root / name, list[str]()
    recipe = _tried(lambda: _recipe(folder), problems)
    scores = _tried(lambda: _json(folder / "metrics.json"), problems) or {}
    classes = _tried(lambda: _class_scores(scores), problems) or {}
    return {
        **summarize_run(root, name),
        "loss": _tried(lambda: _losses(folder), problems) or [],
        "classes": classes,
        "settings": recipe.model_dump(mode="json", exclude_none=True) if recipe else {},
        "protocol": _tried(lambda: (scores.get("protocol") or {}).get("summary"), problems),
        "report": (folder / "evaluation.html").is_file(),
        "problem": "; ".join(problems),
    }


def _files(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.is_file():
            yield entry
        elif depth and not entry.is_symlink() and not entry.name.startswith(("checkpoint-", ".")):
            yield from _files(entry, depth - 1)


def _changed_at(folder: Path) -> float:
    return max((folder / mark).stat().st_mtime for mark in MARKS if (folder / mark).is_file())


def _recipe(folder: Path) -> Recipe | None:
    path = folder / "recipe.yaml"
    return load_recipe(path) if path.is_file() else None


def _losses(folder: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of the log, or of the last checkpoint of a run that has not finished."""
    log = _json(folder / "training_log.json") or _json(folder / "conversion.json")
    if log is not None:
        return [(int(step), float(loss)) for step, loss in log.get("loss") or []]
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    history = (_json(states[-1]) or {}).get("log_history", []) if states else []
    return [(int(entry["step"]), float(entry["loss"])) for entry in history if "loss" in entry]


def _class_scores(scores: dict[str, Any]) -> dict[str, float | None]:
    return {label: found.get("iou") for label, found in (scores.get("per_class") or {}).items()}


def _json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file.

    Raises:
        DataError: It is none.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path.name}: is not a JSON object")
    return content


def _tried(read: Callable[[], Value], problems: list[str]) -> Value | None:
    try:
        return read()
    except CCSegformerError as error:
        problems.append(str(error))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problems.append(f"damaged: {type(error).__name__}: {error}")
    return None


def _attention_words(attention: Any) -> str:
    return attention if isinstance(attention, str) else ", ".join(attention)
