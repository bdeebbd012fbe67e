"""What the studies are told on the command line."""

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
        shrink: by how much images are made smaller before all else.
        size: side of the training crops, in pixels of the smaller images.
        steps: of 4 images, of a run that begins with the efficient model.
        pretraining_steps: of the efficient model, and of other runs from scratch.
        only: the rows of the table that are asked for; none: all.
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
        """Of the data set."""
        return Path(self.data).name

    @cached_property
    def training(self) -> Any:
        """The training split."""
        return open_dataset(self.data, "training")

    @cached_property
    def validation(self) -> Any:
        """The split that is scored."""
        return open_dataset(self.data, "validation")

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the runs, but the seeds."""
        return {
            "data": self.name,
            "images": {"training": len(self.training), "validation": len(self.validation)},
            "shrink": self.shrink,
            "size": self.size,
            "steps": self.steps,
            "pretraining_steps": self.pretraining_steps,
        }

    def from_scratch(self, **changes: Any) -> Plan:
        """A training from scratch, with criss-cross attention unless changed."""
        steps = self.pretraining_steps
        return self.begun(**{"steps": steps, "warmup_steps": steps // 20, **changes})

    def begun(self, **changes: Any) -> Plan:
        """A training that begins with what the efficient model gives."""
        return Plan(Augmentation(self.size), **{"steps": self.steps, "shrink": self.shrink, **changes})

    def folder(self, seed: int) -> Path:
        """Of the runs of a seed."""
        return self.output / f"seed-{seed}"

    def pretrained(self, seed: int) -> dict[str, Tensor]:
        """The state dict of the efficient model of a seed, trained now if it is not there yet."""
        plan = self.from_scratch(overrides=(("attention", "efficient"),))
        return trained_weights(self.folder(seed), PRETRAINED, plan, self.training, seed, None)["end"]


def chosen(study: Study, names: Iterable[str], always: str) -> set[str]:
    """The rows of the table that are asked for, and the one that the others are compared with.

    Raises:
        SystemExit: there is no such row; one line with those that there are.
    """
    names = list(dict.fromkeys(names))
    if unknown := [name for name in study.only if name not in names]:
        raise SystemExit(f"--only: no row {unknown[0]!r}; there are {'; '.join(names)}")
    return {always, *study.only} if study.only else set(names)


def parse_study(description: str | None) -> Study:
    """The study that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a folder of images and masks, or 'procedural'")
    parser.add_argument(
        "--output", type=Path, help="the folder of the runs; default: runs/studies/NAME-SHRINK"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shrink", type=int, default=2, help="make images smaller by this")
    parser.add_argument("--size", type=int, default=128, help="side of the training crops")
    parser.add_argument("--steps", type=int, default=300, help="after the efficient model")
    parser.add_argument("--pretraining-steps", type=int, default=1200, help="of it, and from scratch")
    parser.add_argument("--only", nargs="+", default=[], help="only these rows of the table")
    given = parser.parse_args()
    output = given.output or Path("runs/studies") / f"{Path(given.data).name}-{given.shrink}"
    budget = (given.shrink, given.size, given.steps, given.pretraining_steps)
    study = Study(given.data, output, tuple(given.seeds), *budget, only=tuple(given.only))
    try:
        check_settings(study.output, study.settings)
    except CCSegformerError as error:
        raise SystemExit(str(error)) from None
    return study
