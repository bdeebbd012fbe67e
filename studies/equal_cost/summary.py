"""The table and the plot of the study of cost."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from studies.tables import BLUE, INK, ORANGE, QUIET, RULE, difference, spread

COLORS = {"efficient": BLUE, "criss_cross": ORANGE, "none": QUIET}
MARKERS = "osD^v"

Row = Mapping[str, Any]


def seeds_of(row: Row) -> list[float]:
    """Return the mean IoU of each seed."""
    return [scores[0] for scores in row["scores"]]


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table, cheapest first, against criss-cross attention in its largest window."""
    crosses = [row for row in rows if (row["size"], row["attention"]) == ("b0", "criss_cross")]
    base = max(crosses, key=lambda row: row["window"], default=None)
    lines = [
        "| network | window | GFLOPs a megapixel | mean IoU | each seed | difference |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for row in sorted(rows, key=lambda row: row["gflops"]):
        seeds = seeds_of(row)
        shared = seeds_of(base)[: len(seeds)] if base else []
        behind = difference(seeds, shared) if base and row is not base else ""
        lines.append(
            f"| {row['name']} | {row['window']} | "
            f"{row['gflops']:.0f} | {spread(seeds)} | "
            f"{', '.join(f'{seed:.3f}' for seed in seeds)} | {behind} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Plot mean IoU against operations; dots are seeds, lines join the windows of a network."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    shown: dict[str, int] = {}
    for name, group in groupby(sorted(rows, key=lambda row: row["name"]), key=lambda row: row["name"]):
        found = sorted(group, key=lambda row: row["window"])
        attention = found[0]["attention"]
        marker = MARKERS[shown.get(attention, 0) % len(MARKERS)]
        shown[attention] = shown.get(attention, 0) + 1
        look: dict[str, Any] = {"color": COLORS[attention], "marker": marker}
        costs = [row["gflops"] for row in found]
        for row, cost in zip(found, costs, strict=True):
            seeds = seeds_of(row)
            axes.plot([cost] * len(seeds), seeds, linestyle="", alpha=0.35, markersize=4, **look)
        means = [float(np.mean(seeds_of(row))) for row in found]
        axes.plot(costs, means, linewidth=1.8, markersize=7, label=name, **look)
        if max(costs) > 1.1 * min(costs):  # else the words would overlap
            for row, cost, mean in zip(found, costs, means, strict=True):
                axes.annotate(
                    str(row["window"]), (cost, mean), (0, -14), textcoords="offset points", ha="center",
                    color=QUIET, fontsize=8,
                )  # fmt: skip
    axes.set_xscale("log")
    ticks = [tick for tick in (10, 15, 20, 30, 50, 100, 150, 200) if tick <= 1.3 * axes.get_xlim()[1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("GFLOPs a megapixel of the scene; numbers at the marks: side of the window", color=QUIET)
    axes.set_ylabel("mean IoU", color=QUIET)
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.grid(color=RULE)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
