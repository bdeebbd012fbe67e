"""Render where the pixels of one image look, as one HTML page without external resources."""

import base64
import json
import shlex
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

import ccsegformer
from ccsegformer.errors import DataError
from ccsegformer.models.attention_weights import AttentionApplication
from ccsegformer.report._display import as_rgb
from ccsegformer.report._html import environment, panel
from ccsegformer.report.attention_maps import AttentionPanel, attention_colors, panels_at, view_file

MAX_BYTES = 6_000_000
"""Bytes of weights in a page, before compression; the grid of pixels that can be clicked follows from it."""
MOST_STEPS = 16
"""Cells that can be clicked along the longer side of the image, at most."""
COMPOSED_SIDE = 64
"""Longest side of a stored composition; on larger grids its weights are summed over squares of positions."""


def render_attention(
    models: Mapping[str, Sequence[AttentionApplication]],
    image: Tensor,
    *,
    name: str,
    pixel: tuple[int, int] | None = None,
    stages: int = 4,
    command: Sequence[str] = (),
) -> str:
    """Return an HTML page on which a reader clicks a pixel and sees where it looks.

    The page holds the weights of one pixel in each cell of a coarse grid, at most 16 x 16 and fewer for deep
    models, so that it stays below a few megabytes. Each weight is stored as its square root in 8 bits: the
    error is at most 0.4% of the largest weight in the same panel and head. Compositions are stored as their
    mean over heads.

    Args:
        models: For each model's name, what `attend_image` returned for this image.
        image: (bands, H, W), as it was shown to the models.
        name: Name of the image.
        pixel: Pixel (y, x) that is shown first; by default the centre. The nearest stored one is taken.
        stages: Stages of the models.
        command: Command line that makes the page again.

    Raises:
        DataError: No model has an attention to show.
    """
    if not any(models.values()):
        raise DataError(f"{', '.join(models)}: no attention to show")
    size = (image.shape[1], image.shape[2])
    start = pixel or (size[0] // 2, size[1] // 2)
    first = {
        model: [_stored(panels_at(own, stage, start, size)) for stage in range(stages)]
        for model, own in models.items()
    }
    steps = _steps(size, sum(_code_count(each) for each in _flat(first)))
    codes, maxima = _encode_weights(models, stages, size, steps)
    data = {
        "image": panel(as_rgb(image), "", "", is_labels=False)["source"],
        "size": size,
        "steps": steps,
        "start": {"y": start[0], "x": start[1]},
        "colors": attention_colors(),
        "models": [
            {"name": model, "stages": [[_outline(each) for each in panels] for panels in own]}
            for model, own in first.items()
        ],
        "codes": _packed(codes),
        "maxima": _packed(maxima),
    }
    facts = {
        "stored pixels": f"{steps[1]} × {steps[0]}, one for each cell of a grid over the image",
        "precision": "square roots of weights in 8 bits: at most 0.4% of the largest in a panel",
    }
    return (
        environment()
        .get_template("attention.html.j2")
        .render(
            image_name=name,
            height=size[0],
            width=size[1],
            data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
            css=Markup(view_file("attention_view.css")),
            script=Markup(view_file("attention_view.js")),
            page_script=Markup(view_file("attention_page.js")),
            facts=facts,
            command=shlex.join(command),
            version=ccsegformer.__version__,
        )
    )


def _stored(panels: list[AttentionPanel]) -> list[AttentionPanel]:
    """Reduce compositions to their mean over heads, summed over squares of positions on large grids."""
    return [_summed(each) if each.composed else each for each in panels]


def _summed(composed: AttentionPanel) -> AttentionPanel:
    assert composed.weights is not None
    weights = composed.weights.mean(axis=0)
    ratio = -(-max(weights.shape) // COMPOSED_SIDE)
    for axis in (0, 1):
        weights = np.add.reduceat(weights, np.arange(0, weights.shape[axis], ratio), axis=axis)
    title = composed.title if ratio == 1 else f"{composed.title}, sums over {ratio} × {ratio} positions"
    return composed._replace(title=title, weights=weights[None], ratio=ratio)


def _heads_by_part(panel: AttentionPanel) -> list[NDArray[np.float32]]:
    """Return a panel's weights, each (heads, length)."""
    arrays = [panel.weights] if panel.weights is not None else [panel.row, panel.column]
    return [array.reshape(panel.heads, -1) for array in arrays if array is not None]


def _outline(panel: AttentionPanel) -> dict[str, Any]:
    """Return what is the same for all pixels."""
    return {
        "title": panel.title,
        "attention": panel.attention,
        "composed": panel.composed,
        "averaged": panel.composed,
        "grid": panel.grid,
        "heads": panel.heads,
        "ratio": panel.ratio,
        "shape": None if panel.weights is None else panel.weights.shape[1:],
        "lengths": [part.shape[1] for part in _heads_by_part(panel)],
    }


def _flat(by_model: Mapping[str, list[list[AttentionPanel]]]) -> Iterator[AttentionPanel]:
    for stages in by_model.values():
        for panels in stages:
            yield from panels


def _code_count(panel: AttentionPanel) -> int:
    return sum(part.size for part in _heads_by_part(panel))


def _steps(size: tuple[int, int], per_pixel: int) -> tuple[int, int]:
    """Return the cells down and across, as square as possible, whose weights fit."""
    for longest in range(MOST_STEPS, 0, -1):
        down, across = (max(1, round(longest * side / max(size))) for side in size)
        if down * across * per_pixel <= MAX_BYTES:
            break
    return down, across


def _encode_weights(
    models: Mapping[str, Sequence[AttentionApplication]],
    stages: int,
    size: tuple[int, int],
    steps: tuple[int, int],
) -> tuple[bytes, bytes]:
    """Return the codes and the maxima of all weights, by model, stage, panel, pixel and head."""
    codes, maxima = [], []
    pixels = [
        tuple(int((at + 0.5) * side // count) for at, side, count in zip(cell, size, steps, strict=True))
        for cell in np.ndindex(*steps)
    ]
    for applications in models.values():
        for stage in range(stages):
            by_pixel = [_stored(panels_at(applications, stage, (y, x), size)) for y, x in pixels]
            for same in zip(*by_pixel, strict=True):
                for each in same:
                    weights = np.concatenate(_heads_by_part(each), axis=1)
                    largest = weights.max(axis=1, keepdims=True)
                    codes.append(np.rint(255 * np.sqrt(weights / largest)).astype(np.uint8).tobytes())
                    maxima.append(largest.astype("<f4").tobytes())
    return b"".join(codes), b"".join(maxima)


def _packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()
