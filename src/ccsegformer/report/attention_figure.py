"""Draw where one pixel of an image looks, as a matplotlib figure."""

import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from ccsegformer.errors import DataError
from ccsegformer.files import write_atomically
from ccsegformer.models.attention import ATTENTIONS
from ccsegformer.models.attention_weights import AttentionApplication
from ccsegformer.report._display import as_rgb
from ccsegformer.report.attention_maps import AttentionPanel, of_head, panels_at, peak_of

LONGEST_SHOWN = 900
"""Longest side of the picture below the weights, in pixels; larger images are thinned."""
PANEL = 2.35
"""Height of a panel in inches, without its profiles."""
PROFILE = 0.16
"""Height of the profiles beside a cross, as a share of the image's shorter side."""
DARK_INK, QUIET_INK = "#1c1e21", "#5d636b"
LEGEND = (
    "Brightness: square root of the weight over the panel's largest, or over 4 times a uniform weight if "
    "that is more.\nComposed: a row of the product of two attention matrices, without values and MLPs."
)


def attention_figure(
    models: Mapping[str, Sequence[AttentionApplication]],
    image: Tensor,
    pixel: tuple[int, int],
    *,
    stage: int | None = None,
) -> Figure:
    """Draw where a pixel looks, on the image, for one or more models.

    Without `stage`, there is one line for each stage: its last two applications, averaged over heads, and for
    criss-cross attention the two composed. With `stage`, there is one line for each of its applications and
    compositions, with a panel for each head.

    A criss-cross panel has the position's row and column, at least 1/60 of the image wide, and beside it
    their weights as profiles. Brightness is the square root of the weight over the panel's largest, or over 4
    times a uniform weight if that is more, so that a panel without preference is dim.

    Args:
        models: For each model's name, what `attend_image` returned for this image.
        image: (bands, H, W), as it was shown to the models.
        pixel: Pixel (y, x), from 0.
        stage: Index of the one stage to show, from 0.

    Raises:
        IndexError: The pixel is outside the image.
        DataError: No model has an attention to show.
    """
    size = (image.shape[1], image.shape[2])
    by_model = {name: _panel_lines(applications, pixel, size, stage) for name, applications in models.items()}
    where = "" if stage is None else f" in stage {stage + 1}"
    if not any(by_model.values()):
        raise DataError(f"{', '.join(models)}: no attention to show{where}")
    # Models stand side by side, or one below the other where each head has a panel.
    starts: dict[str, tuple[int, int]] = {}
    rows = columns = 0
    for name, lines in by_model.items():
        across = max((len(line) for line in lines.values()), default=0)
        starts[name] = (rows, 0) if stage is not None else (0, columns)
        rows = rows + len(lines) if stage is not None else max([rows, *(place + 1 for place in lines)])
        columns = max(columns, across) if stage is not None else columns + across
    figure, axes = _canvas_of_panels(rows, columns, size[1] / size[0])
    picture = _backdrop(image)
    for name, lines in by_model.items():
        top, left = starts[name]
        for place, line in lines.items():
            for offset, labelled in enumerate(line):
                axis = axes[top + place][left + offset]
                _draw_panel(axis, picture, size, labelled.panel, labelled.head, pixel)
                axis.set_title(labelled.label, fontsize=9, color=QUIET_INK, loc="left", pad=4)
            if stage is None and left == 0:
                _write_beside(axes[place][0], f"stage {place + 1}")
        if len(models) > 1 and lines:
            axis = axes[top + min(lines)][left]
            axis.text(
                *(0, 1.14), name, transform=axis.transAxes, fontsize=11, color=DARK_INK, fontweight="bold"
            )
    figure.suptitle(
        f"Where pixel ({pixel[1]}, {pixel[0]}) looks{where}",
        x=0.02, y=1 - 0.08 / figure.get_size_inches()[1], ha="left", va="top", fontsize=13, color=DARK_INK,
    )  # fmt: skip
    figure.text(0.02, 0.06 / figure.get_size_inches()[1], LEGEND, fontsize=8, color=QUIET_INK, va="bottom")
    return figure


def write_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG or SVG, by the path's suffix; the same figure gives the same bytes.

    Raises:
        OutputError: The file cannot be written.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "ccsegformer"}):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    write_atomically(path, buffer.getvalue())


class _Labelled(NamedTuple):
    label: str
    panel: AttentionPanel
    head: int | None


def _panel_lines(
    applications: Sequence[AttentionApplication],
    pixel: tuple[int, int],
    size: tuple[int, int],
    stage: int | None,
) -> dict[int, list[_Labelled]]:
    """Return a model's panels by line: one line a stage, or one for each of a stage's panels."""
    if stage is not None:
        return {
            place: [
                _Labelled(f"{_written_label(panel)}, head {head + 1}", panel, head)
                for head in range(panel.heads)
            ]
            for place, panel in enumerate(panels_at(applications, stage, pixel, size))
        }
    lines = {}
    for index in sorted({each.stage for each in applications}):
        last = [each for each in applications if each.stage == index][-2:]
        panels = panels_at(last, index, pixel, size)
        lines[index] = [_Labelled(_written_label(panel), panel, None) for panel in panels]
    return lines


def _canvas_of_panels(rows: int, columns: int, wide: float) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure for images `wide` times as wide as high, and its axes, without frames."""
    width, height = 0.55 + columns * (PANEL * wide + 0.45), 1.6 + rows * (PANEL + 0.6)
    figure = Figure(figsize=(max(width, 7), height), dpi=110, facecolor="white")
    axes: list[list[Axes]] = figure.subplots(rows, columns, squeeze=False).tolist()
    for axis in itertools.chain(*axes):
        axis.set_axis_off()
    figure.subplots_adjust(
        left=0.45 / figure.get_size_inches()[0],
        right=1 - 0.05 / figure.get_size_inches()[0],
        top=1 - 1.05 / height,
        bottom=0.5 / height,
        wspace=0.05,
        hspace=0.14,
    )
    return figure, axes


def _write_beside(axis: Axes, words: str) -> None:
    axis.annotate(
        words, (-0.03, 0.42), xycoords="axes fraction", rotation=90, fontsize=10, color=DARK_INK, ha="right",
        va="center",
    )  # fmt: skip


def _written_label(panel: AttentionPanel) -> str:
    kind = "composed" if panel.composed else ATTENTIONS[panel.attention].label.lower()
    return f"{panel.title}, {kind}"


def _backdrop(image: Tensor) -> NDArray[np.float32]:
    """Return the image (H, W, 3), dark and almost grey, so that colour means weight."""
    rgb = as_rgb(image)
    step = max(1, -(-max(rgb.shape[:2]) // LONGEST_SHOWN))
    pixels = rgb[::step, ::step].astype(np.float32) / 255
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    return (0.05 + 0.45 * (0.75 * grey[..., None] + 0.25 * pixels)).astype(np.float32)


def _draw_panel(
    axis: Axes,
    picture: NDArray[np.float32],
    size: tuple[int, int],
    panel: AttentionPanel,
    head: int | None,
    pixel: tuple[int, int],
) -> None:
    height, width = size
    axis.imshow(picture, extent=(0, width, height, 0), interpolation="bilinear")
    if panel.row is not None and panel.column is not None:
        _draw_cross(axis, size, panel, of_head(panel.row, head), of_head(panel.column, head))
    elif panel.weights is not None:
        weights = of_head(panel.weights, head)
        rows, columns = (count * panel.ratio for count in weights.shape)
        extent = (0, width * columns / panel.grid[1], height * rows / panel.grid[0], 0)
        axis.imshow(
            _colored(weights, panel.attention, peak_of(weights)), extent=extent, interpolation="nearest"
        )
    for color, thick in (("black", 3.2), ("white", 1.4)):
        axis.plot(
            *(pixel[1] + 0.5, pixel[0] + 0.5), "o",
            markersize=6.5, markerfacecolor="none", markeredgecolor=color, markeredgewidth=thick,
        )  # fmt: skip
    room = 1.25 * PROFILE * min(size)
    axis.set_xlim(0, width + room)
    axis.set_ylim(height, -room)
    axis.set_aspect("equal", anchor="SW")


def _draw_cross(
    axis: Axes,
    size: tuple[int, int],
    panel: AttentionPanel,
    row: NDArray[np.float32],
    column: NDArray[np.float32],
) -> None:
    """Draw a row and a column over the image, and their weights as profiles above it and to its right."""
    (height, width), (rows, columns), (h, w) = size, panel.grid, panel.position
    peak = peak_of(row, column[np.arange(rows) != h])
    thick = max(height / rows, min(size) / 60), max(width / columns, min(size) / 60)
    middle = (h + 0.5) * height / rows, (w + 0.5) * width / columns
    column = column.copy()
    column[h] = row[w]  # the position itself, whose one weight is drawn where both lines meet
    axis.imshow(
        _colored(column[:, None], panel.attention, peak),
        extent=(middle[1] - thick[1] / 2, middle[1] + thick[1] / 2, height, 0),
        interpolation="nearest",
    )
    axis.imshow(
        _colored(row[None], panel.attention, peak),
        extent=(0, width, middle[0] + thick[0] / 2, middle[0] - thick[0] / 2),
        interpolation="nearest",
    )
    color = ATTENTIONS[panel.attention].light
    tall, gap = PROFILE * min(size), 0.02 * min(size)
    axis.stairs(
        -gap - tall * row / peak, np.linspace(0, width, columns + 1), baseline=-gap, fill=True, color=color
    )
    axis.stairs(
        width + gap + tall * column / peak,
        np.linspace(0, height, rows + 1),
        baseline=width + gap,
        orientation="horizontal",
        fill=True,
        color=color,
    )


def _colored(weights: NDArray[np.float32], attention: str, peak: float) -> NDArray[np.float32]:
    """Return weights (h, w) as RGBA, transparent at 0 and bright at the peak."""
    strength = np.sqrt(weights / peak)
    of = ATTENTIONS[attention]
    pale = tuple(1 - 0.25 * (1 - level) for level in to_rgb(of.dark))
    ramp = LinearSegmentedColormap.from_list(attention, [to_rgb(of.light), to_rgb(of.dark), pale])
    colored: NDArray[np.float32] = ramp(strength).astype(np.float32)
    colored[..., 3] = np.minimum(1, 1.1 * strength)
    return colored
