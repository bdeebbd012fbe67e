"""The table, the verdict and the plot of the study of scenes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from studies.satellite.options import Study
from studies.tables import BLUE, INK, ORANGE, QUIET, RULE, SEEDS_DIFFER_BY, can_judge, spread

NAMES = {"efficient": "efficient", "criss_cross": "criss-cross", "none": "none"}
COLORS = {"efficient": BLUE, "criss_cross": ORANGE, "none": QUIET}
STYLES = ("--", "-", ":", "-.")
CLEAR_IOU, CLEAR_COST = 0.01, 0.3  # models that differ only in weights differed by 30% in time
"""Lead that wins: in IoU for every seed, and as a share of the other's time or memory."""

Result = Mapping[str, Any]


class Column(NamedTuple):
    """A column of the table."""

    title: str
    value: Callable[[Result], float]


def columns(names: Sequence[str]) -> list[Column]:
    """Return the columns for these classes: first the deciding score, last time and memory.

    With two classes the second is the object, and its IoU decides; with more, mIoU does.
    """
    found = [Column("mIoU", lambda result: result["mIoU"])]
    if len(names) == 2:
        # The IoU is None if the class is in neither map nor truth.
        found.insert(0, Column(f"IoU of {names[1]}", lambda result: result["IoU"][names[1]] or 0.0))
    return [
        *found,
        Column("s / megapixel", lambda result: result["seconds_per_megapixel"]),
        Column("peak memory, MB", lambda result: result["peak_bytes"] / 1e6),
    ]


def values(results: Sequence[Result], column: Column, window: int, attention: str, size: int) -> list[float]:
    """Return a column's value for every seed."""
    key = (window, attention, size)
    return [column.value(r) for r in results if (r["window"], r["attention"], r["map"]) == key]


def sizes(results: Sequence[Result]) -> list[int]:
    """Return the sides of the mapping windows."""
    return sorted({result["map"] for result in results})


def table(results: Sequence[Result], names: Sequence[str]) -> str:
    """Return a table with one line per training window, attention and mapping window, averaged over seeds."""
    shown = columns(names)
    heads = ["trained with", "attention", "mapped with", *(column.title for column in shown)]
    lines = ["| " + " | ".join(heads) + " |", "|---:|---|" + "---:|" * (1 + len(shown))]
    keys = dict.fromkeys((result["window"], result["attention"]) for result in results)
    for window, attention in sorted(keys, key=lambda key: key[0]):
        for size in sizes(results):
            cells = [str(window), NAMES[attention], str(size)]
            for column in shown:
                found = values(results, column, window, attention, size)
                if "IoU" in column.title:
                    cells.append(spread(found))
                else:
                    cells.append(f"{np.mean(found):.{2 if 'megapixel' in column.title else 0}f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def verdict(results: Sequence[Result], names: Sequence[str], window: int) -> str:
    """Say with which mapping windows each attention wins, in IoU, time and memory."""
    score, *_, seconds, memory = columns(names)
    verdicts = []
    for title, column in ((score.title, score), ("time", seconds), ("memory", memory)):
        won, lost = [], []
        for size in sizes(results):
            cross, efficient = (
                np.array(values(results, column, window, name, size)) for name in ("criss_cross", "efficient")
            )
            if column is score:
                won.append(bool((cross - efficient > CLEAR_IOU).all()))
                lost.append(bool((efficient - cross > CLEAR_IOU).all()))
            else:
                won.append(bool(cross.mean() < (1 - CLEAR_COST) * efficient.mean()))
                lost.append(bool(efficient.mean() < (1 - CLEAR_COST) * cross.mean()))
        tried = sizes(results)
        verdicts.append(f"{title}: criss-cross wins {where(tried, won)}, efficient {where(tried, lost)}")
    return f"Trained with {window}, by the size of the mapping window. {'; '.join(verdicts)}."


def where(tried: Sequence[int], won: Sequence[bool]) -> str:
    """Describe the sizes that won."""
    places = [size for size, is_won in zip(tried, won, strict=True) if is_won]
    if not places:
        return "nowhere"
    if len(places) == len(tried):
        return "at every size"
    if places == list(tried[-len(places) :]):
        return f"from {places[0]} on"
    return f"at {', '.join(map(str, places))}"


def markdown_page(study: Study, results: Sequence[Result], names: Sequence[str], processor: str) -> str:
    """Return the study's page: its setup, its table and the verdicts."""
    scenes, score = study.validation.scenes, columns(names)[0]
    best = max(results, key=lambda result: np.mean(_alike(results, score, result)))
    paragraphs = [
        f"### Efficient and criss-cross attention on {study.data.name}",
        _protocol(study, results, processor),
        table(results, names).rstrip(),
    ]
    smallest = min(min(scene.height, scene.width) for scene in scenes)
    if large := [str(size) for size in study.maps if size > smallest]:
        paragraphs.append(f"Windows of {' and '.join(large)} are cut to the scene where it is smaller.")
    paragraphs.append(
        f"Best {score.title}: {NAMES[best['attention']]}, trained with {best['window']}, mapped with "
        f"{best['map']}: {spread(_alike(results, score, best))}."
    )
    if {"efficient", "criss_cross"} <= set(study.attentions):
        paragraphs += [verdict(results, names, window) for window in study.windows]
        noise = f" One seed says little: seeds were seen to differ by up to {SEEDS_DIFFER_BY}."
        paragraphs.append(
            f"A win in IoU is a lead of {CLEAR_IOU} with every seed; in time or memory, a lead of "
            f"{CLEAR_COST:.0%}.{noise if len(study.seeds) == 1 else ''}"
        )
    attending = [name for name in study.attentions if name != "none"]
    if attending and "none" in study.attentions:
        place = (best["window"], best["map"])
        rows: dict[str, dict[str, list[float]]] = {
            name: {"score": values(results, score, place[0], name, place[1])} for name in study.attentions
        }
        judged = can_judge(rows, "score", attending, "none")
        paragraphs.append(f"Trained with {place[0]}, mapped with {place[1]}: {judged}")
    return "\n\n".join(paragraphs) + "\n"


def _protocol(study: Study, results: Sequence[Result], processor: str) -> str:
    count = len(study.seeds)
    threads = " or ".join(sorted({str(result["threads"]) for result in results}))
    devices = " and ".join(sorted({result["device"] for result in results}))
    shapes = ", ".join(f"{scene.height} x {scene.width}" for scene in study.validation.scenes)
    return (
        f"SegFormer-B0 from scratch by recipes/aerial.yaml, with {study.steps} steps of {study.pixels:,} "
        f"pixels, a learning rate of {study.learning_rate:g}, and half the windows centred on a class drawn "
        f"uniformly; {count} seed{'s' * (count > 1)}. Mapped scenes: {shapes} pixels (height x width), with "
        "the default overlap and blending. Time is the whole call of `predict_scene`, which reads, labels, "
        "blends and writes, without starting the process or loading the model; "
        f"device {devices}, threads {threads}, {processor}. Memory is the peak beyond the loaded model, in a "
        "separate run. Every run is a fresh process."
    )


def draw(results: Sequence[Result], names: Sequence[str], title: str, path: Path) -> None:
    """Plot score, time and memory against the mapping window; dots are seeds, lines their means."""
    score, *_, seconds, memory = columns(names)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    attentions = [name for name in NAMES if any(result["attention"] == name for result in results)]
    trained = {(result["window"], result["attention"]) for result in results}
    lines = sorted(trained, key=lambda line: (attentions.index(line[1]), line[0]))
    windows = sorted({window for window, _ in lines})
    for axes, column in zip(figure.subplots(1, 3), (score, seconds, memory), strict=True):
        for window, attention in lines:
            found = [values(results, column, window, attention, size) for size in sizes(results)]
            look: dict[str, Any] = {"color": COLORS[attention]}
            for size, seeds in zip(sizes(results), found, strict=True):
                axes.plot([size] * len(seeds), seeds, "o", alpha=0.45, markersize=4, **look)
            style = STYLES[windows.index(window) % len(STYLES)]
            label = f"{NAMES[attention]}, trained with {window}"
            axes.plot(sizes(results), np.mean(found, axis=1), style, linewidth=1.8, label=label, **look)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes(results), [str(size) for size in sizes(results)])
        if column is not score:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("side of the mapping window, pixels", color=QUIET)
        axes.set_title(column.title, loc="left", color=INK, fontsize=11)
        axes.grid(color=RULE)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=INK)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(attentions), frameon=False)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=12)
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(path, dpi=150, metadata={"Date": None})


def _alike(results: Sequence[Result], column: Column, like: Result) -> list[float]:
    """Return a column's value for every seed of the same training and mapping."""
    return values(results, column, like["window"], like["attention"], like["map"])
