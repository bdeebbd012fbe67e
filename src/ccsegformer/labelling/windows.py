"""Label one window after another; what it shares with later ones is carried on, so none is seen twice."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ccsegformer.data.pixels import MINIMUM_SIDE, normalize, pad_to
from ccsegformer.labelling.engine import Engine, open_engine
from ccsegformer.labelling.labeller import input_statistics
from ccsegformer.labelling.resize import band_rows, resize_rows
from ccsegformer.labelling.tiling import Span, spans, weights
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation

Blend = Literal["logits", "probabilities", "none"]


class Carry(NamedTuple):
    """Scores that wait for the windows to the right and below: float32, weighted and added up so far."""

    right: Tensor
    """Where the columns fall: (rows from rise to end, columns from fall to end, K)."""
    below: Tensor
    """Where the rows fall: (rows from fall to end, columns from rise to fall, K)."""


class Labelled(NamedTuple):
    """What is final once a window is done, from rise to fall of its rows and columns."""

    labels: Tensor
    """(rows, columns), uint8, or int32 for more than 256 classes."""
    confidence: Tensor | None
    """Probability of that class, float32 (rows, columns)."""


def window_logits(engine: Engine, pixels: Tensor, name: str | Path) -> Tensor:
    """Float32 logits (1, K, h, w) of a normalised window (C, H, W), at a quarter of its size.

    The network sees a side below 32 pixels padded, and its logits are those of the padded window.

    Raises:
        EngineError: they are not finite; the message calls the window `name`.
    """
    logits = engine(pad_to(pixels[None], MINIMUM_SIDE, MINIMUM_SIDE, 0), image=name)
    return logits.contiguous(
        memory_format=torch.channels_last
    )  # classes side by side, for softmax and argmax


@torch.inference_mode()
def label_window(
    logits: Tensor,
    rows: Span,
    columns: Span,
    *,
    blend: Blend = "logits",
    right: Tensor | None = None,
    below: Tensor | None = None,
    confidence: bool = False,
) -> tuple[Labelled, Carry]:
    """Label what is final of a window, band by band: scores of K x H x W are never stored.

    Scores at a scene's pixel are added up over its windows, from left to right, then from above.

    Args:
        logits: of the window, as `window_logits` gives them.
        rows, columns: where it lies.
        blend: "logits" or "probabilities", weighted; "none" where the spans have no ramps.
        right: what the window to the left carried to the right, if any.
        below: what the windows above carried down to this one's columns, if any.
        confidence: also give the probability of the chosen class.
    """
    height, width = (max(side.size, MINIMUM_SIDE) for side in (rows, columns))
    down, across = (torch.from_numpy(weights(side)).to(logits.device) for side in (rows, columns))
    seen = slice(columns.rise - columns.start, columns.end - columns.start)
    lead, cells = columns.full - columns.rise, columns.final
    depth = logits.shape[1]
    labels = torch.empty(
        rows.final, cells, dtype=torch.uint8 if depth <= 256 else torch.int32, device=logits.device
    )
    sure = torch.empty(rows.final, cells, device=logits.device) if confidence else None
    carry = Carry(
        logits.new_empty(rows.end - rows.rise, columns.end - columns.fall, depth),
        logits.new_empty(rows.end - rows.fall, cells, depth),
    )
    for first, last in _bands(rows, band_rows(logits, width)):
        own = slice(first - rows.rise, last - rows.rise)
        scores = resize_rows(logits, height, width, first - rows.start, last - rows.start)[:, seen]
        fades = first < rows.full or last > rows.fall
        # Where one window alone counts, its best logit is its best probability: softmax only where need be.
        shared = [scores] if fades or confidence else [scores[:, :lead], scores[:, cells:]]
        if blend == "probabilities":
            for part in shared:
                part.copy_(part.softmax(dim=-1))
        if fades:
            scores *= down[own, None, None]
        scores[:, :lead] *= across[:lead, None]
        scores[:, cells:] *= across[cells:, None]
        if right is not None:
            scores[:, :lead] += right[own]
        carry.right[own] = scores[:, cells:]
        scores = scores[:, :cells]
        if below is not None and first < rows.full:
            scores += below[own]
        if first >= rows.fall:
            carry.below[first - rows.fall : last - rows.fall] = scores
            continue
        labels[own] = scores.argmax(dim=-1)
        if sure is not None:
            sure[own] = (scores if blend == "probabilities" else scores.softmax(dim=-1)).amax(dim=-1)
    return Labelled(labels, sure), carry


def label_image(
    model: CrissCrossSegformerForSemanticSegmentation | Engine,
    image: Tensor,
    window: int,
    overlap: int,
    blend: Blend = "logits",
    *,
    name: str | Path = "image",
) -> Tensor:
    """Label an image (bands, H, W) window by window, by an engine or a model, which is run by one.

    Returns:
        Labels (H, W) on the CPU: uint8, or int32 for more than 256 classes.

    Raises:
        DataError: an image of other bands than the model takes; the message calls it `name`.
        EngineError: the logits are not finite.
    """
    engine = open_engine(model)
    statistics = input_statistics(
        engine.config, image.shape[0], str(image.dtype).removeprefix("torch."), name
    )
    rows, columns = (spans(side, window, overlap, taper=blend != "none") for side in image.shape[1:])
    labels = torch.empty(
        image.shape[1:], dtype=torch.uint8 if engine.config.num_labels <= 256 else torch.int32
    )
    below: list[Tensor | None] = [None] * len(columns)
    for row in rows:
        right = None
        for index, column in enumerate(columns):
            pixels = image[:, row.start : row.stop, column.start : column.stop].to(engine.device)
            logits = window_logits(engine, normalize(pixels, statistics), name)
            labelled, (right, below[index]) = label_window(
                logits, row, column, blend=blend, right=right, below=below[index]
            )
            labels[row.rise : row.fall, column.rise : column.fall] = labelled.labels
    return labels


def _bands(rows: Span, size: int) -> list[tuple[int, int]]:
    """Bands of at most `size` rows, none across the borders of the ramps."""
    found = []
    for start, stop in ((rows.rise, rows.full), (rows.full, rows.fall), (rows.fall, rows.end)):
        found += [(first, min(first + size, stop)) for first in range(start, stop, size)]
    return found
