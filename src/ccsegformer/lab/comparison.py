"""Train a recipe with each attention, score the models on the same images and compare the scores."""

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

import ccsegformer
from ccsegformer.config.protocol import DEFAULT, EvaluationProtocol, save_protocol
from ccsegformer.data.dataset import LabelledImages
from ccsegformer.errors import CCSegformerError, OutputError
from ccsegformer.evaluation.evaluate import describe_scored, evaluate, write_metrics
from ccsegformer.files import write_atomically
from ccsegformer.lab.cost import Cost, measure_cost
from ccsegformer.lab.results import Run, choose_examples, summarize
from ccsegformer.lab.verdict import judge
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
    """Train a model with each attention and one without, and compare them on held-out images.

    Writes `results.json` (the returned dictionary), `report.html`, `recipe.yaml` and one model folder
    `ATTENTION-seedN` per run. The models differ only in `model.attention`; run n uses the seed
    `training.seed + n`. An interrupted comparison continues if called again with the same recipe, data and
    folder: finished runs are only scored again, and an interrupted run resumes from its last checkpoint.

    Args:
        recipe: Recipe for every model; its own `model.attention` is ignored.
        data: Data folder (see `open_dataset`) or "procedural". Models are scored on its validation split.
        output: Folder for the comparison. It must not contain another one, unless `overwrite` is set.
        attentions: Names from `ATTENTIONS`, by default all. The control "none" is always added.
        seeds: Number of runs with each attention.
        protocol: Evaluation protocol. If it is not the default, it is also written to `protocol.yaml`.
        overwrite: Delete the comparison in `output`.
        command: Command line to show in the report; by default, one that repeats this comparison.
        progress: Show progress on stderr.

    Raises:
        OutputError: `output` contains something else.
        CCSegformerError: An argument is wrong, or `train`, `evaluate` or `measure_cost` failed.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise CCSegformerError("compare runs in a single process; start it without torchrun")
    known = [name for name in ATTENTIONS if name != CONTROL]
    attentions = known if attentions is None else attentions
    models = [*dict.fromkeys(name for name in attentions if name != CONTROL), CONTROL]
    if len(models) == 1 or not set(models) <= set(ATTENTIONS):
        raise CCSegformerError(
            f"attentions must be some of {', '.join(known)}, not {', '.join(attentions) or 'empty'}"
        )
    if seeds < 1:
        raise CCSegformerError(f"seeds must be at least 1, not {seeds}")
    if protocol.score != "mean_iou":
        raise CCSegformerError(f"compare needs a protocol with score mean_iou, not {protocol.score}")
    output, recipe = Path(output), recipe.model_copy(update={"data": str(data)})
    dataset, training = open_dataset(data, "validation"), open_dataset(data, "training")
    _claim(output, recipe, overwrite)
    if protocol != DEFAULT:
        save_protocol(protocol, output / "protocol.yaml")

    console = Console(stderr=True, quiet=not progress, highlight=False)
    runs: dict[str, list[Run]] = {attention: [] for attention in models}
    for run in _train_and_score(recipe, dataset, output, models, seeds, protocol, console):
        runs[run.attention].append(run)
    counts = {attention: np.stack([run.counts for run in of]) for attention, of in runs.items()}
    verdict = judge(counts, dataset.classes.names)
    height, width = dataset[0]["image"].shape[-2:]
    console.print(f"Measuring the cost of one {width} × {height} image")
    costs = {attention: measure_cost(of[0].folder, height, width) for attention, of in runs.items()}
    results = {
        "created": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "version": ccsegformer.__version__,
        "command": command or _repeat_command(output, data, attentions, seeds, protocol),
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
    """Check that the folder is free or contains this comparison, and write the recipe to it."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: not a folder")
    written = output / "recipe.yaml"
    if (output / "config.json").exists():
        raise OutputError(f"{output}: contains a model, not a comparison; choose another folder")
    if overwrite:
        for attention in ATTENTIONS:
            for folder in output.glob(f"{attention}-seed*/"):
                shutil.rmtree(folder)
        for name in ("results.json", "report.html", "protocol.yaml"):
            (output / name).unlink(missing_ok=True)
    elif written.exists():
        differing = [key for key in differing_keys(load_recipe(written), recipe) if key != "model.attention"]
        if differing:
            raise OutputError(
                f"{output}: contains another comparison, which differs in {', '.join(differing)}; "
                "overwrite it or choose another folder"
            )
    elif output.exists() and any(output.iterdir()):
        raise OutputError(f"{output}: not empty and not a comparison; choose another folder")
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
    """Train and score the models, all attentions of one seed before the next seed."""
    jobs = [(recipe.training.seed + index, attention) for index in range(seeds) for attention in attentions]
    seconds: list[float] = []
    for place, (seed, attention) in enumerate(jobs):
        left = len(jobs) - place
        remaining = f", about {duration(left * sum(seconds) / len(seconds))} left in total" if seconds else ""
        label = ATTENTIONS[attention].label
        console.print(f"[bold]{place + 1} of {len(jobs)}: {label}, seed {seed}[/bold]{remaining}")
        folder, begin = output / f"{attention}-seed{seed}", time.monotonic()
        if (folder / "model.safetensors").exists():
            console.print(f"{folder}: already trained, scoring again")
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
        yield _score(attention, seed, folder, str(recipe.data), dataset, protocol, not console.quiet)
        seconds.append(time.monotonic() - begin)


def _score(
    attention: str,
    seed: int,
    folder: Path,
    data: str,
    dataset: LabelledImages,
    protocol: EvaluationProtocol,
    progress: bool,
) -> Run:
    model, _ = load_model(folder)
    evaluation = evaluate(model, dataset, protocol=protocol, progress=progress)
    scored = describe_scored(str(folder), data, "validation")
    write_metrics(evaluation, folder / "metrics.json", scored)
    assert evaluation.counts is not None
    return Run(attention, seed, folder, evaluation, evaluation.counts)


def _cost_figures(cost: Cost) -> dict[str, float]:
    names = ("parameters", "gflops", "peak_memory_mib", "images_per_second")
    return {name: getattr(cost, name) for name in names}


def _repeat_command(
    output: Path, data: str | Path, attentions: Sequence[str], seeds: int, protocol: EvaluationProtocol
) -> str:
    """Return a command line that repeats the comparison."""
    words = ["ccsegformer", "compare", str(output / "recipe.yaml"), "--data", str(data)]
    words += ["--output", f"{output}-again", "--seeds", str(seeds)]
    if protocol != DEFAULT:
        words += ["--protocol", str(output / "protocol.yaml")]
    return shlex.join(
        words + [word for name in attentions if name != CONTROL for word in ("--attention", name)]
    )
