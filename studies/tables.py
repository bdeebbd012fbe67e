"""Tables and plots of mean IoU over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

Scores = Mapping[str, Sequence[float]]
"""mIoU by column, one value per seed."""

SEEDS_DIFFER_BY = 0.05
"""Largest difference in mIoU seen between seeds with the studies' budgets."""

INK, QUIET, RULE, BLUE, ORANGE = "#1f2933", "#5f6c7b", "#dde3ea", "#2f6db3", "#c9622b"


def spread(values: Sequence[float]) -> str:
    """Return the mean and, for two seeds or more, the standard deviation."""
    if len(values) < 2:
        return f"{np.mean(values):.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def difference(values: Sequence[float], base: Sequence[float]) -> str:
    """Return the mean difference to the same seeds of `base`, with its standard deviation."""
    paired = np.subtract(values, base)
    tail = f" ± {np.std(paired, ddof=1):.3f}" if len(paired) > 1 else ""
    return f"{paired.mean():+.3f}".replace("-", "−") + tail


def markdown_table(
    rows: Mapping[str, Scores], texts: Mapping[str, Mapping[str, str]], columns: Mapping[str, str], base: str
) -> str:
    """Return a table: per row its texts, then each column and its difference to the row `base`."""
    heads = ["", *texts, *(head for title in columns.values() for head in (title, "change"))]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, scores in rows.items():
        cells = [name, *(text[name] for text in texts.values())]
        for column in columns:
            changed = difference(scores[column], rows[base][column]) if name != base else ""
            cells += [spread(scores[column]), changed]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def dot_plot(
    rows: Mapping[str, Scores], columns: Mapping[str, str], base: str, title: str, path: Path
) -> None:
    """Draw each row's seeds as dots and their mean as a bar, with a vertical line at the mean of `base`."""
    figure = Figure(figsize=(8.4, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (column, color) in enumerate(zip(columns, (BLUE, ORANGE), strict=False)):
        shift = 0.0 if len(columns) == 1 else 0.17 * (2 * place - 1)
        for row, scores in enumerate(rows.values()):
            values = np.array(scores[column])
            axes.plot(values, np.full(len(values), row + shift), "o", color=color, alpha=0.45, markersize=4)
            axes.plot(
                [values.mean()] * 2, [row + shift - 0.16, row + shift + 0.16], color=color, linewidth=2.4
            )
        axes.plot([], [], color=color, linewidth=2.4, label=columns[column])
    axes.axvline(float(np.mean(rows[base][next(iter(columns))])), color=QUIET, linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("mean IoU on the validation split; dots are seeds, bars their mean", color=QUIET)
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.grid(axis="x", color=RULE)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    if len(columns) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.06), ncols=len(columns), frameon=False)
    with mpl.rc_context({"svg.hashsalt": title}):
        figure.savefig(path, dpi=150)


def can_judge(rows: Mapping[str, Scores], column: str, attentions: Sequence[str], control: str) -> str:
    """Say whether a data set can tell attentions apart: the best must beat the control for every seed.

    With a single seed, the lead must also exceed the difference seen between seeds.
    """
    means = {name: float(np.mean(rows[name][column])) for name in attentions}
    best = max(means, key=lambda name: means[name])
    leads = np.subtract(rows[best][column], rows[control][column])
    lead = difference(rows[best][column], rows[control][column])
    detail = f"the better attention ({best}) leads the model without attention by {lead}"
    if len(leads) == 1 and 0.01 < leads[0] < SEEDS_DIFFER_BY:
        return f"One seed cannot say if this set can judge attention: {detail}, within the spread of seeds."
    if leads.min() > 0 and leads.mean() > 0.01:
        return f"This set can judge attention: {detail}, for every seed."
    return f"This set cannot judge attention: {detail}, which is next to nothing or changes with the seed."
