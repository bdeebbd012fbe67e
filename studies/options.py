"""The command line of the image studies."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ccsegformer.errors import CCSegformerError
from ccsegformer.sources import open_dataset
from studies.augmentation import Augmentation
from studies.harness import Plan
from studies.runs import PRETRAINED, check_settings, trained_weights


@dataclass(frozen=True)
class Study:
    """A data set, a budget and a folder of runs.

    Attributes:
        data: Folder of images and masks, or "procedural".
        output: Folder of the runs.
        shrink: Factor by which images are shrunk first.
        size: Side of the training crops, in pixels of the shrunk images.
        steps: Steps of 4 images in a run that starts from the efficient model.
        pretraining_steps: Steps of the efficient model and of other runs from scratch.
        only: Rows of the table to run; empty: all.
    """

    data: str
    output: Path
    seeds: tuple[int, ...]
    shrink: int
    size: int
    steps: int
    pretraining_steps: int
    only: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the data set."""
        return Path(self.data).name

    @cached_property
    def training(self) -> Any:
        """The training split."""
        return open_dataset(self.data, "training")

    @cached_property
    def validation(self) -> Any:
        """The split for scoring."""
        return open_dataset(self.data, "validation")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the runs, except the seeds."""
        return {
            "data": self.name,
            "images": {"training": len(self.training), "validation": len(self.validation)},
            "shrink": self.shrink,
            "size": self.size,
            "steps": self.steps,
            "pretraining_steps": self.pretraining_steps,
        }

    def from_scratch(self, **changes: Any) -> Plan:
        """Plan a training from scratch, with criss-cross attention unless changed."""
        steps = self.pretraining_steps
        return self.begun(**{"steps": steps, "warmup_steps": steps // 20, **changes})

    def begun(self, **changes: Any) -> Plan:
        """Plan a training that starts from the efficient model."""
        return Plan(Augmentation(self.size), **{"steps": self.steps, "shrink": self.shrink, **changes})

    def folder(self, seed: int) -> Path:
        """Return the folder of a seed's runs."""
        return self.output / f"seed-{seed}"

    def pretrained(self, seed: int) -> dict[str, Tensor]:
        """Return the state dict of a seed's efficient model; train it first if necessary."""
        plan = self.from_scratch(overrides=(("attention", "efficient"),))
        return trained_weights(self.folder(seed), PRETRAINED, plan, self.training, seed, None)["end"]


def chosen(study: Study, names: Iterable[str], always: str) -> set[str]:
    """Return the requested rows of the table, and the row `always` that the others are compared with.

    Raises:
        SystemExit: A requested row does not exist. The message lists those that do.
    """
    names = list(dict.fromkeys(names))
    if unknown := [name for name in study.only if name not in names]:
        raise SystemExit(f"--only: no row {unknown[0]!r}; choose from {'; '.join(names)}")
    return {always, *study.only} if study.only else set(names)


def parse_study(description: str | None) -> Study:
    """Read the study from the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of images and masks, or 'procedural'")
    parser.add_argument("--output", type=Path, help="folder of the runs; default: runs/studies/NAME-SHRINK")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--shrink", type=int, default=2, help="factor by which images are shrunk")
    parser.add_argument("--size", type=int, default=128, help="side of the training crops, in pixels")
    parser.add_argument("--steps", type=int, default=300, help="steps of runs that start from it")
    parser.add_argument(
        "--pretraining-steps",
        type=int,
        default=1200,
        help="steps of the efficient model and of runs from scratch",
    )
    parser.add_argument("--only", nargs="+", default=[], help="rows of the table; default: all")
    given = parser.parse_args()
    output = given.output or Path("runs/studies") / f"{Path(given.data).name}-{given.shrink}"
    budget = (given.shrink, given.size, given.steps, given.pretraining_steps)
    study = Study(given.data, output, tuple(given.seeds), *budget, only=tuple(given.only))
    try:
        check_settings(study.output, study.settings)
    except CCSegformerError as error:
        raise SystemExit(str(error)) from None
    return study
