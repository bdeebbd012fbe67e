"""Write a benchmark as Markdown, JSON and a plot."""

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
from ccsegformer.lab.benchmark.tables import Measurement

COLUMNS = ("", "seconds", "spread", "peak MiB", "GFLOP", "of bound", "error", "faster", "memory")
DRAWING = {"svg.fonttype": "path", "svg.hashsalt": "ccsegformer", "font.size": 10}
TEXT_COLOR, RIVAL_COLOR, OWN_COLORS = "#333333", "#777777", ("#2b6cb0", "#c05621", "#2f855a", "#805ad5")
MARKER_SHAPES = "os^DvP*X"


def markdown(heading: str, rows: Sequence[Measurement]) -> str:
    """Return a table of medians, ranges and ratios, with notes."""
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
    lines += ["", *(f"Faster and memory are relative to {rival}." for rival in rivals)]
    bounds = dict.fromkeys(row.bound for row in rows if row.bound)
    lines += [f"Bound by: {bound}." for bound in bounds]
    lines += [f"Checked against {truth}: {'; '.join(names)}." for truth, names in checks.items()]
    lines += [f"{row.name}: {row.failure}." for row in rows if row.failure]
    return "\n".join(lines) + "\n"


def count_threads(threads: int) -> str:
    """Return a phrase such as "2 threads"."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def preamble(machine: Mapping[str, Any], settings: Mapping[str, Any], limits: Mapping[str, float]) -> str:
    """Return the machine, the settings, the measured limits and the meaning of the columns."""
    packages = ("torch", "transformers", "openvino", "onnxruntime")
    versions = ", ".join(f"{package} {machine[package]}" for package in packages if machine[package])
    absent = "".join(
        f" {runtime} did not take part: {package} is not installed."
        for runtime, package in settings["missing"].items()
    )
    return (
        f"Machine: {machine['gpu'] or machine['processor']}, {count_threads(settings['threads'])}; "
        f"{versions}. {settings['what']}.{absent}\n\n"
        f"Measured limits: {limits['matrix product'] / 1e9:.0f} GFLOP/s in matrix products, "
        f"{limits['copy'] / 1e9:.1f} GB/s in copies, {limits['exponentials'] / 1e9:.2f} G exponentials/s. "
        "`of bound` is the shortest time that these limits, measured on an idle machine, allow, as a share "
        "of the time taken. Contenders run in turn, each in its own process; `seconds` is the median over "
        "rounds, `spread` the range. `peak MiB` is the memory for intermediate and final results, without "
        "the weights, the input and the compiled program. `error` is the root mean square error, relative to "
        "the exact result; ratios are given only for results with a small error.\n"
    )


def scaling_plot(tables: Mapping[str, Sequence[Measurement]], title: str) -> Figure:
    """Plot time and peak memory against pixels, on logarithmic scales, with each contender's slopes.

    Headings end with the size. Tables whose headings differ in anything else get their own row of plots.
    """
    groups: dict[str, list[Measurement]] = {}
    for heading, rows in tables.items():
        groups.setdefault(heading.rpartition(", ")[0], []).extend(row for row in rows if row.seconds)
    with mpl.rc_context(DRAWING):
        figure = Figure(figsize=(10, 6.5 * len(groups)), layout="constrained")
        parts = figure.subfigures(len(groups), squeeze=False)[:, 0]
        for part, (group, rows) in zip(parts, groups.items(), strict=True):
            _plot_group(part, group, rows)
        figure.suptitle(title, color=TEXT_COLOR)
    return figure


def _plot_group(part: Any, group: str, rows: Sequence[Measurement]) -> None:
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
        "in brackets: exponents with which time and memory grow with the number of pixels"
        if any(slopes.values())
        else None
    )
    part.suptitle(group, color=TEXT_COLOR)
    part.legend(
        pair[0].lines, labels, title=explained, frameon=False, fontsize=9, loc="outside lower center", ncols=2
    )


def _styles(names: Sequence[str], ours: Collection[str]) -> dict[str, dict[str, Any]]:
    """Style rivals in grey, each of our models in one colour, and each way to run a model with one marker.

    A name consists of the model and, after a comma, the way to run it. Our models without one are bold.
    """
    models = list(dict.fromkeys(name.partition(", ")[0] for name in names if name in ours))
    colors = dict(zip(models, cycle(OWN_COLORS), strict=False))
    markers = {model: iter(cycle(MARKER_SHAPES)) for model in {name.partition(", ")[0] for name in names}}
    styles = {}
    for name in names:
        model, _, way = name.partition(", ")
        bold = model in colors and not way
        styles[name] = {
            "color": colors.get(model, RIVAL_COLOR),
            "marker": next(markers[model]),
            "markerfacecolor": colors.get(model, "white"),
            "linestyle": "-" if bold or model not in colors else "--",
            "linewidth": 2.4 if bold else 1.1,
            "zorder": 3 if bold else 2,
        }
    return styles


def _slope(pixels: Sequence[int], values: Sequence[float]) -> float:
    """Return the exponent with which the values grow with the number of pixels."""
    return float(np.polyfit(np.log(pixels), np.log(values), 1)[0])


def write_benchmark(
    folder: Path,
    name: str,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    limits: Mapping[str, float],
    tables: Mapping[str, Sequence[Measurement]],
) -> None:
    """Write NAME.json, NAME.md and NAME.svg to a folder, which is created if missing."""
    rows = {heading: [asdict(row) for row in of] for heading, of in tables.items()}
    content = {"machine": machine, "settings": settings, "limits": limits, "tables": rows}
    text = "\n".join([preamble(machine, settings, limits), *(markdown(*each) for each in tables.items())])
    write_atomically(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
    write_atomically(folder / f"{name}.md", text)
    plot = io.StringIO()
    with mpl.rc_context(DRAWING):
        scaling_plot(tables, settings["what"]).savefig(plot, format="svg", metadata={"Date": None})
    write_atomically(folder / f"{name}.svg", plot.getvalue())
