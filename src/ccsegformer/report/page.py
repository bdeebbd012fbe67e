"""Render a comparison as one self-contained HTML page without scripts or external resources."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup
from numpy.typing import NDArray

from ccsegformer.data.labels import Classes, colorize
from ccsegformer.models.attention import ATTENTIONS
from ccsegformer.report import figures
from ccsegformer.report._html import environment, panel, protocol_words
from ccsegformer.report.table import model_label, number, table_rows


@dataclass(frozen=True)
class Example:
    """Held-out image with the truth and each model's prediction as class ids (H, W)."""

    name: str
    caption: str
    image: NDArray[np.uint8]  # (H, W, 3), RGB
    truth: NDArray[np.integer]
    predictions: Mapping[str, NDArray[np.integer]]
    scores: Mapping[str, float | None]
    """Mean IoU of each prediction over the classes in this image."""


def render_page(results: dict[str, Any], examples: list[Example]) -> str:
    """Return the HTML page for the results of `compare`."""
    models, data, verdict = results["models"], results["data"], results["verdict"]
    classes = Classes(
        tuple(data["classes"]), tuple((r, g, b) for r, g, b in data["palette"]), data["ignore_index"]
    )
    pair = verdict["differences"][0]
    labels = {attention: model_label(attention, model) for attention, model in models.items()}
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            results=results,
            data=data,
            verdict=verdict,
            labels=labels,
            rows=table_rows(results),
            charts=_charts(results),
            difference_caption=_difference_caption(results),
            pair_label=" and ".join(ATTENTIONS[pair[key]].label.lower() for key in ("first", "second")),
            legend=[
                (name, f"rgb{color}") for name, color in zip(classes.names, classes.palette, strict=True)
            ],
            examples=[_example(example, classes) for example in examples],
            protocol=_protocol(results),
            commands=_commands(results),
            recipe=yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True),
        )
    )


def _charts(results: dict[str, Any]) -> dict[str, Markup]:
    models, pair = results["models"], results["verdict"]["differences"][0]
    scores = {attention: model["image_miou"] for attention, model in models.items()}
    ious = {
        attention: {name: of["iou"] for name, of in model["per_class"].items()}
        for attention, model in models.items()
    }
    losses = {attention: [run["loss"] for run in model["runs"]] for attention, model in models.items()}
    first, second = pair["first"], pair["second"]
    labels = {name: ATTENTIONS[name].label for name in models}
    lead = f"{labels[first]} minus {labels[second].lower()}: mean IoU of each held-out image"
    svgs = {
        "loss": figures.loss_curves(losses, "Training loss by step, for each model"),
        "classes": figures.class_scores(
            ious, "IoU of each class, for each model; see the table for the numbers"
        ),
        "images": figures.image_scores(
            scores, labels, "Mean IoU of each held-out image, for each model, with quartiles"
        ),
        "differences": figures.image_differences(first, second, scores, lead),
    }
    return {name: Markup(svg) for name, svg in svgs.items()}


def _difference_caption(results: dict[str, Any]) -> str:
    """Say on how many images each of the two models is better."""
    pair, models = results["verdict"]["differences"][0], results["models"]
    first, second = pair["first"], pair["second"]
    labels = ATTENTIONS[first].label, ATTENTIONS[second].label.lower()
    both = zip(models[first]["image_miou"], models[second]["image_miou"], strict=True)
    leads = [a - b for a, b in both if a is not None and b is not None]
    ahead, behind = sum(lead > 0 for lead in leads), sum(lead < 0 for lead in leads)
    return (
        f"{labels[0]} minus {labels[1]} on the same image: the first is better on {ahead} of {len(leads)} "
        f"images, the second on {behind}."
    )


def _example(example: Example, classes: Classes) -> dict[str, Any]:
    """Return the panels of an example from left to right, for the template."""
    panels = [
        panel(example.image, "Image", f"{example.name}: the image", is_labels=False),
        panel(colorize(example.truth, classes), "Truth", f"{example.name}: the true classes"),
    ]
    for attention, labels in example.predictions.items():
        score, label = example.scores[attention], ATTENTIONS[attention].label
        alt = f"{example.name}: classes predicted with {label.lower()}, mean IoU {number(score)}"
        shown = panel(colorize(labels, classes), label, alt)
        panels.append({**shown, "attention": attention, "score": score})
    return {"name": example.name, "caption": example.caption, "panels": panels}


def _protocol(results: dict[str, Any]) -> dict[str, Any]:
    """Describe the protocol, including how costs and intervals were computed."""
    protocol, verdict = protocol_words(results["protocol"]), results["verdict"]
    cost = protocol.pop("cost")
    protocol["cost"] = (
        f"one float32 image of {cost['width']} × {cost['height']} on {cost['device']}, "
        f"CPU threads: {cost['threads']}; measured in a fresh process: memory of the first pass, median time "
        "of several passes"
    )
    if verdict["resamples"]:
        protocol["intervals"] = (
            f"{verdict['confidence']:.0%} percentile bootstrap of the data set's mean IoU: "
            f"{verdict['resamples']} resamples of the images with replacement, the same for every model, "
            f"seed {verdict['bootstrap_seed']}"
        )
    return protocol


def _commands(results: dict[str, Any]) -> str:
    """Return the command for the whole comparison, and one that scores each trained model again."""
    own_protocol = results["protocol"]["name"] != "default"
    lines = ["# the whole comparison", results["command"], "", "# scores of one model"]
    for model in results["models"].values():
        for run in model["runs"]:
            arguments = ["ccsegformer", "evaluate", run["folder"], "--data", results["data"]["name"]]
            if own_protocol:
                arguments += ["--protocol", str(Path(run["folder"]).parent / "protocol.yaml")]
            lines.append(shlex.join(arguments))
    return "\n".join(lines)
