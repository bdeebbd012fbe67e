"""The command line of the study of scenes."""

import argparse
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ccsegformer.errors import CCSegformerError
from ccsegformer.labelling.windows import STEP
from ccsegformer.raster.dataset import Scenes
from ccsegformer.training.recipe import Recipe, load_recipe
from studies.runs import check_settings

RECIPE = Path(__file__).parents[2] / "recipes" / "aerial.yaml"
ATTENTIONS = ("criss_cross", "efficient", "none")


class Run(NamedTuple):
    """One training.

    Attributes:
        window: Side of the training window, in pixels.
    """

    attention: str
    window: int
    seed: int

    def __str__(self) -> str:
        return f"{self.attention}-{self.window}-seed-{self.seed}"


@dataclass(frozen=True)
class Study:
    """Scenes, a budget and a folder of runs.

    Attributes:
        windows: Sides of the training windows, in pixels.
        maps: Sides of the mapping windows, in pixels; empty: train only.
        pixels: Pixels per optimizer step, for every window.
    """

    data: Path
    output: Path
    seeds: tuple[int, ...]
    attentions: tuple[str, ...]
    windows: tuple[int, ...]
    maps: tuple[int, ...]
    steps: int
    pixels: int
    learning_rate: float

    @cached_property
    def validation(self) -> Scenes:
        """The scenes to map."""
        return Scenes(self.data, "validation")

    @property
    def runs(self) -> list[Run]:
        """All trainings; those to compare are next to each other."""
        wanted = product(self.seeds, self.windows, self.attentions)
        return [Run(attention, window, seed) for seed, window, attention in wanted]

    def folder(self, run: Run) -> Path:
        """Return the folder of a run."""
        return self.output / str(run)

    def recipe(self, run: Run) -> Recipe:
        """Return `recipes/aerial.yaml` with the study's budget and half the windows centred on a rare class.

        Raises:
            CCSegformerError: A step is not a whole number of windows, or a value of the budget is invalid.
        """
        batch_size, rest = divmod(self.pixels, run.window**2)
        if rest or not batch_size:
            raise CCSegformerError(
                f"--pixels {self.pixels} is not a whole number of windows of {run.window} x {run.window}"
            )
        names = [transform.name for transform in load_recipe(RECIPE).transforms]
        changes = {
            "model.attention": run.attention,
            "windows.rare_classes": 0.5,
            f"transforms.{names.index('random_crop')}.sizes": [run.window],
            "training.steps": self.steps,
            "training.batch_size": batch_size,
            "training.seed": run.seed,
            "training.save_steps": max(1, self.steps // 10),
            "optimizer.learning_rate": self.learning_rate,
            "schedule.warmup_steps": self.steps // 20,
        }
        return load_recipe(RECIPE, [f"{key}={value}" for key, value in changes.items()])

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that all runs have in common."""
        scenes = {
            split: {scene.name: [scene.height, scene.width] for scene in Scenes(self.data, split).scenes}
            for split in ("training", "validation")
        }
        # Without the keys in which runs differ.
        recipe = self.recipe(Run("efficient", self.windows[0], 0)).model_dump(mode="json")
        del recipe["model"]["attention"], recipe["training"]["batch_size"], recipe["training"]["seed"]
        for transform in recipe["transforms"]:
            transform.pop("sizes", None)
        return {"data": self.data.name, "scenes": scenes, "pixels": self.pixels, "recipe": recipe}


def default_output(data: Path) -> Path:
    """Return the default folder of the runs on these scenes."""
    return Path("runs/studies") / f"satellite-{data.name}"


def parse_study(description: str | None) -> Study:
    """Read the study from the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of georeferenced scenes")
    add("--output", type=Path, help="folder of the runs; default: runs/studies/satellite-NAME")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--attentions", nargs="+", choices=ATTENTIONS, default=["efficient", "criss_cross"])
    add("--windows", type=int, nargs="+", default=[256, 512], help="sides of training windows, in pixels")
    add(
        "--map",
        type=int,
        nargs="*",
        default=[512, 1024, 2048, 4096],
        help="sides of mapping windows; none: train only",
    )
    add("--steps", type=int, default=300)
    add("--pixels", type=int, default=2 * 512**2, help="pixels per step; sets the batch size")
    add("--learning-rate", type=float, default=1e-3)
    given = parser.parse_args()
    lists = (given.seeds, given.attentions, given.windows, given.map)
    seeds, attentions, windows, maps = (tuple(dict.fromkeys(each)) for each in lists)
    output = given.output or default_output(given.data)
    budget = (given.steps, given.pixels, given.learning_rate)
    study = Study(given.data, output, seeds, attentions, tuple(sorted(windows)), tuple(sorted(maps)), *budget)
    try:
        if small := [side for side in (*windows, *maps) if side < STEP]:
            raise CCSegformerError(f"--windows and --map must be at least {STEP} pixels, not {small[0]}")
        for run in study.runs:
            study.recipe(run)
        check_settings(output, study.settings)
    except CCSegformerError as error:
        raise SystemExit(str(error)) from None
    return study
