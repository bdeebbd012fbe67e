"""Charts of a comparison, as SVG that takes its colours and font from the surrounding page.

Each function takes numbers and returns one `<svg>` element. Charts are drawn in placeholder colours, which
are then replaced by the page's CSS variables, so that they follow light and dark mode.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from ccsegformer.models.attention import ATTENTIONS

INK, QUIET, RULE = "#010101", "#020202", "#030303"
POINTS = 400
"""Approximate number of points to which a curve is thinned."""

LossCurve = Sequence[tuple[int, float]]


def loss_curves(curves: Mapping[str, Sequence[LossCurve]], title: str) -> str:
    """Plot training loss by step, one curve per model and seed: smoothed, with the raw values behind it."""
    figure, axes = _canvas(9.2, 3.4)
    for model, runs in curves.items():
        for run in runs:
            if not run:
                continue
            steps, losses = np.array(run, dtype=np.float64).reshape(-1, 2).T
            losses = np.maximum(losses, 1e-6)  # a logarithmic scale has no 0
            every = max(1, len(steps) // POINTS)
            axes.plot(steps[::every], losses[::every], color=_color(model), linewidth=0.7, alpha=0.3)
            axes.plot(steps[::every], _smooth(losses)[::every], color=_color(model), linewidth=1.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.grid(True)
    axes.set_xlim(0, max((run[-1][0] for runs in curves.values() for run in runs if run), default=1))
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy, log scale")
    return _svg(figure, title)


def class_scores(scores: Mapping[str, Mapping[str, float | None]], title: str) -> str:
    """Plot the IoU of each class, one marker per model; classes that do not occur have none."""
    names = list(next(iter(scores.values())))
    figure, axes = _canvas(9.2, 0.9 + 0.3 * len(names))
    rows = np.arange(len(names))
    table = np.array([[_nan(of[name]) for name in names] for of in scores.values()])
    for row, values in zip(rows, table.T, strict=True):
        if np.isfinite(values).any():
            axes.hlines(row, np.nanmin(values), np.nanmax(values), color=RULE, linewidth=3, zorder=1)
    for model, values in zip(scores, table, strict=True):
        marker = ATTENTIONS[model].marker
        axes.scatter(values, rows, s=38, marker=marker, color=_color(model), alpha=0.9, zorder=2)
    axes.set_yticks(rows, [_class_label(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(-0.01, 1.01)
    axes.xaxis.grid(True)
    axes.set_xlabel("IoU")
    return _svg(figure, title)


def image_scores(scores: Mapping[str, Sequence[float | None]], labels: Mapping[str, str], title: str) -> str:
    """Plot the mean IoU of every held-out image by model, with quartiles."""
    figure, axes = _canvas(4.5, 3.6)
    shuffle = np.random.default_rng(0)  # spreads the dots sideways
    for place, (model, values) in enumerate(scores.items()):
        known = _known(values)
        axes.scatter(
            place + shuffle.uniform(-0.22, 0.22, len(known)),
            known,
            s=11,
            marker=ATTENTIONS[model].marker,
            color=_color(model),
            alpha=0.45,
            linewidths=0,
        )
        if len(known):
            low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
            axes.vlines(place + 0.36, low, high, color=_color(model), linewidth=4)
            axes.hlines(middle, place - 0.3, place + 0.42, color=INK, linewidth=1.2, zorder=3)
    axes.set_xticks(range(len(scores)), [labels[model] for model in scores])
    axes.set_xlim(-0.55, len(scores) - 0.45)
    axes.set_ylabel("mIoU per image")
    axes.yaxis.grid(True)
    return _svg(figure, title)


def image_differences(
    first: str, second: str, scores: Mapping[str, Sequence[float | None]], title: str
) -> str:
    """Plot the difference in mean IoU between `first` and `second` for each image, largest first."""
    figure, axes = _canvas(4.5, 3.6)
    pairs = zip(scores[first], scores[second], strict=True)
    leads = np.sort(_known([a - b for a, b in pairs if a is not None and b is not None]))[::-1]
    colors = [_color(first if lead > 0 else second) for lead in leads]
    axes.bar(range(len(leads)), leads, width=0.85 if len(leads) < 150 else 1, color=colors)
    axes.axhline(0, color=INK, linewidth=0.8)
    span = max(0.01, float(np.abs(leads).max(initial=0))) * 1.05
    axes.set_ylim(-span, span)
    axes.set_xticks([])
    axes.set_xlabel("held-out images, sorted by difference")
    axes.set_ylabel("difference in mIoU")
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    digits = 2 if span > 0.05 else 3
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:+.{digits}f}".replace("-", "−") if round(value, 4) else "0")
    )
    axes.yaxis.grid(True)
    return _svg(figure, title)


def _color(model: str) -> str:
    """Return the placeholder colour of an attention."""
    return "#" + 3 * f"{4 + list(ATTENTIONS).index(model):02x}"


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return axes of a size in inches, at 80 CSS pixels per inch, in placeholder colours."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[:].set_visible(False)
    axes.tick_params(
        which="both", length=0, labelcolor=QUIET, labelsize=10, pad=6, grid_color=RULE, grid_linewidth=0.8
    )
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=QUIET, fontsize=10)
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    """Return an `<svg>` element with an accessible title, without its own colours and fonts."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    variables = {INK: "ink", QUIET: "quiet", RULE: "rule"}
    variables |= {_color(model): model.replace("_", "-") for model in ATTENTIONS}
    for color, variable in variables.items():
        svg = svg.replace(color, f"var(--{variable})")
    used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else "", svg)
    width, height = figure.get_size_inches() * 72
    opening = f'<svg role="img" aria-label="{html.escape(title)}" viewBox="0 0 {width:g} {height:g}" '
    opening += 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg[^>]*>", opening, svg, count=1)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centred running mean over a twentieth of the curve, with shorter windows at both ends."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _known(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([value for value in values if value is not None], dtype=np.float64)


def _nan(value: float | None) -> float:
    return np.nan if value is None else value


def _class_label(name: str) -> str:
    """Shorten a long class name, and escape dollars, which matplotlib would read as mathematics."""
    return (name if len(name) <= 22 else f"{name[:21]}…").replace("$", r"\$")
