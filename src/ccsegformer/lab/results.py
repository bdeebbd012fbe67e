"""Collect the figures and example images of trained and scored models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ccsegformer.config.protocol import EvaluationProtocol
from ccsegformer.data.dataset import LabelledImages
from ccsegformer.evaluation.bootstrap import Counts, mean_iou_from_counts
from ccsegformer.evaluation.evaluate import Evaluation
from ccsegformer.lab.verdict import Difference, Verdict, signed
from ccsegformer.labelling.engine import open_engine
from ccsegformer.labelling.labeller import predict_labels
from ccsegformer.labelling.loading import load_model
from ccsegformer.models.attention import ATTENTIONS
from ccsegformer.report._display import as_rgb
from ccsegformer.report.page import Example
from ccsegformer.training.recipe import Recipe


class Run(NamedTuple):
    """A trained and scored model."""

    attention: str
    seed: int
    folder: Path
    evaluation: Evaluation
    counts: Counts
    """Counts (images, 3, classes), in the data set's order."""


def summarize(runs: Sequence[Run], recipe: Recipe, verdict: Verdict) -> dict[str, Any]:
    """Return the results of one attention: means over its runs with different seeds, and each run's own."""
    attention = runs[0].attention
    logs = [json.loads((run.folder / "training_log.json").read_text(encoding="utf-8")) for run in runs]
    metrics = [run.evaluation.to_dict() for run in runs]
    scores = [of["mean_iou"] for of in metrics]
    criss_cross = attention == "criss_cross"
    image_miou = np.stack([mean_iou_from_counts(run.counts) for run in runs]).mean(axis=0)
    return {
        "attention": attention,
        "recurrence": recipe.model.recurrence if criss_cross else None,
        "projection": recipe.model.projection if criss_cross else None,
        "lepe": recipe.model.lepe if criss_cross else None,
        "mean_iou": _mean(scores),
        "mean_iou_std": float(np.std(scores, ddof=1)) if len(runs) > 1 else None,
        "mean_iou_interval": verdict["intervals"][attention],
        **{
            key: _mean([of[key] for of in metrics])
            for key in ("mean_accuracy", "pixel_accuracy", "devkit_mean_iou")
        },
        "train_seconds": _mean([log["seconds"] for log in logs]),
        "per_class": {
            name: {key: _mean([of["per_class"][name][key] for of in metrics]) for key in ("iou", "accuracy")}
            for name in metrics[0]["per_class"]
        },
        "image_miou": _nullable(image_miou),
        "runs": [
            {
                "seed": run.seed,
                "mean_iou": score,
                "loss": log["loss"],
                "seconds": log["seconds"],
                "folder": str(run.folder),
            }
            for run, score, log in zip(runs, scores, logs, strict=True)
        ],
    }


def choose_examples(
    runs: Sequence[Run], pair: Difference, dataset: LabelledImages, protocol: EvaluationProtocol
) -> list[Example]:
    """Choose three images: the largest difference of a pair in either direction, and the median one.

    Args:
        runs: One run of each attention, which also predicts the chosen images.
        pair: The two attentions to choose by.
        dataset: Held-back images.
        protocol: Protocol to predict with.
    """
    first, second = pair["first"], pair["second"]
    scores = {run.attention: mean_iou_from_counts(run.counts) for run in runs}
    leads = scores[first] - scores[second]
    order = [int(place) for place in np.argsort(-leads, kind="stable") if np.isfinite(leads[place])]
    captions: dict[int, str] = {}
    if order:
        captions[order[0]] = f"Best for {ATTENTIONS[first].label.lower()}"
        captions.setdefault(order[len(order) // 2], "Median")
        captions.setdefault(order[-1], f"Best for {ATTENTIONS[second].label.lower()}")
    samples = [dataset[place] for place in captions]
    predictions: dict[str, list[NDArray[np.integer]]] = {}
    for run in runs:
        engine = open_engine(load_model(run.folder)[0], precision=protocol.precision)
        predictions[run.attention] = [
            predict_labels(engine, sample["image"], protocol, name=sample["name"]).numpy()
            for sample in samples
        ]
    return [
        Example(
            name=sample["name"],
            caption=f"{captions[place]}, {signed(leads[place], plus=True)}",
            image=as_rgb(sample["image"]),
            truth=sample["mask"].numpy(),
            predictions={name: labels[index] for name, labels in predictions.items()},
            scores={name: _nullable(of)[place] for name, of in scores.items()},
        )
        for index, (place, sample) in enumerate(zip(captions, samples, strict=True))
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _nullable(values: NDArray[np.float64]) -> list[float | None]:
    """Replace NaN by None, which JSON can represent."""
    return [float(value) if np.isfinite(value) else None for value in values]
