"""A benchmark as Markdown, as JSON and as a plot."""

import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ccsegformer.files import write_atomically
from ccsegformer.lab.benchmark.tables import Row

COLUMNS = ("", "seconds", "spread", "peak MiB", "GFLOP", "of bound", "error", "faster", "memory")
DRAWING = {"svg.fonttype": "path", "svg.hashsalt": "ccsegformer", "font.size": 10}
INK, RIVALS, OURS = "#333333", "#777777", ("#2b6cb0", "#c05621", "#2f855a", "#805ad5")
MARKERS = "os^DvP*X"


def markdown(heading: str, rows: Sequence[Row]) -> str:
    """A table: medians, their spread, and ratios where results agree."""
    lines = [f"### {heading}", "", f"| {' | '.join(COLUMNS)} |", f"|---{'|---:' * (len(COLUMNS) - 1)}|"]
    for row in rows:
        if row.seconds is None:
            lines.append(f"| {row.name} |{' |' * (len(COLUMNS) - 1)}")
            continue
        low, middle, high = min(row.seconds), median(row.seconds), max(row.seconds)
        cells = (
            row.name,
            f"{middle:.3g}",
            f"{low:.3g}–{high:.3g}",
            f"{row.peak_mib:.0f}",
            f"{row.gflop:.1f}",
            f"{row.of_bound:.0%}",
            f"{row.error:.0e}",
            f"{row.faster:.2f}×" if row.faster else "",
            f"{row.memory:.0%}" if row.memory else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    checks: dict[str, list[str]] = {}
    for row in rows:
        if row.checked_against:
            checks.setdefault(row.checked_against, []).append(row.name)
    rivals = {row.against for row in rows if row.against}
    lines += ["", *(f"Faster and memory: against {rival}." for rival in rivals)]
    bounds = dict.fromkeys(row.bound for row in rows if row.bound)
    lines += [f"Bound: {bound}." for bound in bounds]
    lines += [f"Checked against {truth}: {'; '.join(names)}." for truth, names in checks.items()]
    lines += [f"{row.name}: {row.failure}." for row in rows if row.failure]
    return "\n".join(lines) + "\n"


def count_threads(threads: int) -> str:
    """As a heading has it."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def preamble(machine: Mapping[str, Any], settings: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    """What a reader has to know to believe the tables."""
    packages = ("torch", "transformers", "openvino", "onnxruntime")
    versions = ", ".join(f"{package} {machine[package]}" for package in packages if machine[package])
    lacking = "".join(
        f" Without {runtime}: {package} is not installed." for runtime, package in settings["missing"].items()
    )
    return (
        f"Machine: {machine['gpu'] or machine['processor']}, {count_threads(settings['threads'])}; "
        f"{versions}. {settings['what']}.{lacking}\n\n"
        f"Measured limits: {limits['matrix product'] / 1e9:.0f} GFLOP/s in matrix products, "
        f"{limits['copy'] / 1e9:.1f} GB/s in copies, {limits['exponentials'] / 1e9:.2f} G exponentials/s. "
        "`of bound`: the time that these limits, measured with nothing beside, allow, as a share of the time "
        "taken. Contenders run in turn, each in a process of its own; seconds are medians of turns. Peak "
        "memory is what a run needs for intermediate and final results, kept for the next run or not, beyond "
        "the weights, the input and the compiled program. `error`: root mean square, relative to the "
        "truth's; a ratio is told only between results whose error is small.\n"
    )


def scaling_plot(tables: Mapping[str, Sequence[Row]], title: str) -> Figure:
    """Time and peak memory against pixels, all logarithmic, with each contender's slopes.

    Tables whose headings differ in more than the size, which is their last part, have rows of their own.
    """
    groups: dict[str, list[Row]] = {}
    for heading, rows in tables.items():
        groups.setdefault(heading.rpartition(", ")[0], []).extend(row for row in rows if row.seconds)
    with mpl.rc_context(DRAWING):
        figure = Figure(figsize=(10, 6.5 * len(groups)), layout="constrained")
        parts = figure.subfigures(len(groups), squeeze=False)[:, 0]
        for part, (group, rows) in zip(parts, groups.items(), strict=True):
            _draw(part, group, rows)
        figure.suptitle(title, color=INK)
    return figure


def _draw(part: Any, group: str, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(row.name for row in rows))
    styles = _styles(names, {row.name for row in rows if row.against})
    sides = {row.height * row.width: f"{row.height} x {row.width}" for row in rows}
    quantities = {
        "seconds": lambda row: median(row.seconds),
        "peak memory, MiB": lambda row: row.peak_mib,
    }
    pair = part.subplots(1, 2)
    slopes: dict[str, list[str]] = {name: [] for name in names}
    for axes, (label, value) in zip(pair, quantities.items(), strict=True):
        for name in names:
            own = [row for row in rows if row.name == name]
            pixels, values = [row.height * row.width for row in own], [value(row) for row in own]
            slopes[name] += [f"{_slope(pixels, values):.2f}"] if len(own) > 1 else []
            axes.plot(pixels, values, **styles[name], markersize=5)
        axes.set(xscale="log", yscale="log", title=label)
        axes.set_xticks(list(sides), list(sides.values()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    labels = [f"{name} ({', '.join(found)})" if found else name for name, found in slopes.items()]
    explained = (
        "in brackets: the exponents of pixels with which time and memory grow"
        if any(slopes.values())
        else None
    )
    part.suptitle(group, color=INK)
    part.legend(
        pair[0].lines, labels, title=explained, frameon=False, fontsize=9, loc="outside lower center", ncols=2
    )


def _styles(names: Sequence[str], ours: Collection[str]) -> dict[str, dict[str, Any]]:
    """Rivals in grey, each model of ours in a colour, and a marker for each way to run it.

    A name is that of a model, then, after a comma, of the way; ours without one is bold.
    """
    models = list(dict.fromkeys(name.partition(", ")[0] for name in names if name in ours))
    colors = dict(zip(models, cycle(OURS), strict=False))
    markers = {model: iter(cycle(MARKERS)) for model in {name.partition(", ")[0] for name in names}}
    styles = {}
    for name in names:
        model, _, way = name.partition(", ")
        bold = model in colors and not way
        styles[name] = {
            "color": colors.get(model, RIVALS),
            "marker": next(markers[model]),
            "markerfacecolor": colors.get(model, "white"),
            "linestyle": "-" if bold or model not in colors else "--",
            "linewidth": 2.4 if bold else 1.1,
            "zorder": 3 if bold else 2,
        }
    return styles


def _slope(pixels: Sequence[int], values: Sequence[float]) -> float:
    """The exponent with which the values grow."""
    return float(np.polyfit(np.log(pixels), np.log(values), 1)[0])


def write(
    folder: Path,
    name: str,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    limits: Mapping[str, float],
    tables: Mapping[str, Sequence[Row]],
) -> None:
    """NAME.json, NAME.md and NAME.svg in a folder, which is made."""
    rows = {heading: [asdict(row) for row in of] for heading, of in tables.items()}
    content = {"machine": machine, "settings": settings, "limits": limits, "tables": rows}
    text = "\n".join([preamble(machine, settings, limits), *(markdown(*each) for each in tables.items())])
    write_atomically(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    write_atomically(folder / f"{name}.md", text)
    plot = io.StringIO()
    with mpl.rc_context(DRAWING):
        scaling_plot(tables, settings["what"]).savefig(plot, format="svg", metadata={"Date": None})
    write_atomically(folder / f"{name}.svg", plot.getvalue())
