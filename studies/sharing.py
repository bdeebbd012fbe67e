"""Trainings that processes of the same command share, and that resume after an interruption."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from ccsegformer.training.recipe import Recipe
from ccsegformer.training.trainer import train


def share(work: Mapping[Path, Callable[[], None]]) -> None:
    """Do what no other process is doing, then wait for the others and do what they left undone.

    Args:
        work: Functions that do nothing if their work is done, by a path for the lock, without its suffix.
    """
    for seconds in (0, -1):
        for path, do in work.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(f"{path}.lock", timeout=seconds):
                    do()
            except Timeout:
                print(f"{path.name}: running in another process", flush=True)


def train_once(recipe: Recipe, data: str | Path, folder: Path) -> None:
    """Train into `folder`, or resume there, unless it has finished."""
    if (folder / "model.safetensors").is_file():  # written last
        return
    resume = any(folder.glob("checkpoint-*/trainer_state.json"))
    result = train(recipe, data, folder, resume=resume, overwrite=not resume, progress=sys.stderr.isatty())
    print(f"{folder}: trained in {result.seconds / 60:.1f} minutes", flush=True)
