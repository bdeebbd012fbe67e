"""Train the same recipe with each attention, score the models on the same images, and say which is better."""

import datetime
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import Tensor

import ccsegformer
from ccsegformer.config.protocol import DEFAULT, EvaluationProtocol, save_protocol
from ccsegformer.data.dataset import LabelledImages
from ccsegformer.errors import CCSegformerError, OutputError
from ccsegformer.evaluation.evaluate import evaluate, write_metrics
from ccsegformer.files import write_atomically
from ccsegformer.lab.cost import Cost, measure_cost
from ccsegformer.lab.results import Run, choose_examples, summarize
from ccsegformer.lab.verdict import Counts, class_counts, judge
from ccsegformer.labelling.loading import load_model
from ccsegformer.models.attention import ATTENTIONS, CONTROL
from ccsegformer.report.machine import describe_machine
from ccsegformer.report.page import render_page
from ccsegformer.report.table import duration
from ccsegformer.sources import open_dataset
from ccsegformer.training.recipe import Recipe, differing_keys, load_recipe, save_recipe
from ccsegformer.training.trainer import train


def compare(
    recipe: Recipe,
    data: str | Path,
    output: str | Path,
    *,
    attentions: Sequence[str] | None = None,
    seeds: int = 1,
    protocol: EvaluationProtocol = DEFAULT,
    overwrite: bool = False,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a model with each attention, and with none as the control, and compare them on held-back images.

    Writes `results.json` (what is returned), `report.html`, `recipe.yaml` and a model folder
    `ATTENTION-seedN` for each run. The models differ in `model.attention` alone; run n has the seed
    `training.seed + n`. Called again with the same recipe, data and folder, it goes on where it was broken
    off: finished runs are kept and scored again, a broken-off run resumes from its last checkpoint.

    Args:
        recipe: what every model is trained with; its own `model.attention` is not used.
        data: a folder (see `open_dataset`) or "procedural"; scores are those of its validation split.
        output: a folder that holds no other comparison, unless `overwrite`.
        attentions: names from `ATTENTIONS`; all by default. "none", the control, is always added.
        seeds: how many runs of each.
        protocol: how the models are scored; one that is not the default is also written, as `protocol.yaml`.
        overwrite: remove the comparison that `output` holds.
        command: the command line, for the page; without it that of an equal comparison.
        progress: whether to show on stderr which model is trained, and how long it takes.

    Raises:
        CCSegformerError: as `train`, `evaluate` and `measure_cost`; OutputError also for another comparison
            in `output`.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise CCSegformerError("compare runs in one process; start it without torchrun")
    known = [name for name in ATTENTIONS if name != CONTROL]
    attentions = known if attentions is None else attentions
    models = [*dict.fromkeys(name for name in attentions if name != CONTROL), CONTROL]
    if len(models) == 1 or not set(models) <= set(ATTENTIONS):
        raise CCSegformerError(
            f"attentions to compare are {', '.join(known)}, not {', '.join(attentions) or 'nothing'}"
        )
    if seeds < 1:
        raise CCSegformerError(f"seeds must be 1 or more, not {seeds}")
    if protocol.score != "mean_iou":
        raise CCSegformerError(f"compare judges by mean_iou, not by the protocol's score, {protocol.score}")
    output, recipe = Path(output), recipe.model_copy(update={"data": str(data)})
    dataset, training = open_dataset(data, "validation"), open_dataset(data, "training")
    _claim(output, recipe, overwrite)
    if protocol != DEFAULT:
        save_protocol(protocol, output / "protocol.yaml")

    console = Console(stderr=True, quiet=not progress, highlight=False)
    runs: dict[str, list[Run]] = {attention: [] for attention in models}
    for run in _train_and_score(recipe, dataset, output, models, seeds, protocol, console):
        runs[run.attention].append(run)
    verdict = judge({attention: np.stack([run.counts for run in of]) for attention, of in runs.items()})
    height, width = dataset[0]["image"].shape[-2:]
    console.print(f"Measuring the cost of one image of {width} × {height}")
    costs = {attention: measure_cost(of[0].folder, height, width) for attention, of in runs.items()}
    results = {
        "created": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "version": ccsegformer.__version__,
        "command": command or _command(output, data, attentions, seeds, protocol),
        "machine": describe_machine(),
        "recipe": recipe.model_dump(mode="json"),
        "data": {
            "name": str(data),
            "training": len(training),
            "validation": len(dataset),
            "classes": list(dataset.classes.names),
            "palette": [list(color) for color in dataset.classes.palette],
            "ignore_index": dataset.classes.ignore_index,
            "images": list(dataset.names),
        },
        "protocol": {
            **runs[models[0]][0].evaluation.protocol,
            "cost": {key: getattr(costs[models[0]], key) for key in ("height", "width", "device", "threads")},
        },
        "verdict": verdict,
        "models": {
            attention: summarize(of, recipe, verdict) | _cost_figures(costs[attention])
            for attention, of in runs.items()
        },
    }
    shown = [of[0] for of in runs.values()]
    examples = choose_examples(shown, verdict["differences"][0], dataset, protocol)
    write_atomically(output / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_atomically(output / "report.html", render_page(results, examples))
    return results


def _claim(output: Path, recipe: Recipe, overwrite: bool) -> None:
    """Make sure that the folder is free, or holds this very comparison, and write the recipe there."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is not a folder")
    written = output / "recipe.yaml"
    if (output / "config.json").exists():
        raise OutputError(f"{output}: holds a model, not a comparison; choose another folder")
    if overwrite:
        for attention in ATTENTIONS:
            for folder in output.glob(f"{attention}-seed*/"):
                shutil.rmtree(folder)
        for name in ("results.json", "report.html", "protocol.yaml"):
            (output / name).unlink(missing_ok=True)
    elif written.exists():
        differing = differing_keys(load_recipe(written), recipe)
        if differing:
            raise OutputError(
                f"{output}: holds another comparison, which differs in {', '.join(differing)}; "
                "overwrite it or choose another folder"
            )
    elif output.exists() and any(output.iterdir()):
        raise OutputError(f"{output}: is not empty, and holds no comparison; choose another folder")
    save_recipe(recipe, written)


def _train_and_score(
    recipe: Recipe,
    dataset: LabelledImages,
    output: Path,
    attentions: Sequence[str],
    seeds: int,
    protocol: EvaluationProtocol,
    console: Console,
) -> Iterator[Run]:
    """The runs, seed by seed, so that a comparison that is broken off has pairs to compare."""
    jobs = [(recipe.training.seed + index, attention) for index in range(seeds) for attention in attentions]
    seconds: list[float] = []
    for place, (seed, attention) in enumerate(jobs):
        left = len(jobs) - place
        remaining = f", about {duration(left * sum(seconds) / len(seconds))} left for all" if seconds else ""
        console.print(
            f"[bold]{place + 1} of {len(jobs)}: {ATTENTIONS[attention].label}, seed {seed}[/bold]{remaining}"
        )
        folder, begin = output / f"{attention}-seed{seed}", time.monotonic()
        if (folder / "model.safetensors").exists():
            console.print(f"{folder}: finished already, scored again")
        else:
            model = recipe.model.model_copy(update={"attention": attention})
            training = recipe.training.model_copy(update={"seed": seed})
            resume = any(folder.glob("checkpoint-*/trainer_state.json"))
            train(
                recipe.model_copy(update={"model": model, "training": training}),
                str(recipe.data),
                folder,
                resume=resume,
                overwrite=not resume,
                progress=not console.quiet,
            )
        yield _score(attention, seed, folder, dataset, protocol, not console.quiet)
        seconds.append(time.monotonic() - begin)


def _score(
    attention: str,
    seed: int,
    folder: Path,
    dataset: LabelledImages,
    protocol: EvaluationProtocol,
    progress: bool,
) -> Run:
    model, _ = load_model(folder)
    counts: dict[str, Counts] = {}

    def keep(name: str, confusion: Tensor) -> None:
        counts[name] = class_counts(confusion.numpy())

    evaluation = evaluate(model, dataset, protocol=protocol, on_image=keep, progress=progress)
    write_metrics(evaluation, folder / "metrics.json")
    return Run(attention, seed, folder, evaluation, np.stack([counts[name] for name in dataset.names]))


def _cost_figures(cost: Cost) -> dict[str, float]:
    names = ("parameters", "gflops", "peak_memory_mib", "images_per_second")
    return {name: getattr(cost, name) for name in names}


def _command(
    output: Path, data: str | Path, attentions: Sequence[str], seeds: int, protocol: EvaluationProtocol
) -> str:
    """The command line of an equal comparison."""
    words = ["ccsegformer", "compare", str(output / "recipe.yaml"), "--data", str(data)]
    words += ["--output", f"{output}-again", "--seeds", str(seeds)]
    if protocol != DEFAULT:
        words += ["--protocol", str(output / "protocol.yaml")]
    return shlex.join(words + [word for name in attentions for word in ("--attention", name)])
