"""Windows over an image or a scene: one grid, and one overlap-add of their logits.

At most two windows along a side count at any pixel, and their weights sum to 1, so weighted logits are added
up and never divided. A window's block is final once the windows before it in raster order are computed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccsegformer.data.pixels import pad_to
from ccsegformer.errors import EngineError
from ccsegformer.labelling.engine import Engine, Segmenter, open_engine
from ccsegformer.labelling.resize import Resized, label_dtype
from ccsegformer.raster.read import Box

STEP = 32
"""Windows begin on multiples of SegFormer's coarsest stride: its grids lie as over a whole scene."""
OVERLAP = 128
"""Default overlap in pixels; a quarter of the window if that is less."""


class Span(NamedTuple):
    """A window along one side, in pixels from the edge of the scene; ends are exclusive.

    The network sees `start` to `stop`. The window's weight rises from 0 at `rise` to 1 at `full`, and falls
    from 1 at `fall` to 0 at `end`. The previous window's weight falls where this one's rises; nothing fades
    at the edges of the scene. In raster order, `rise` to `fall` is final once this window has been computed.
    """

    start: int
    stop: int
    rise: int
    full: int
    fall: int
    end: int

    @property
    def size(self) -> int:
        """Number of pixels that the network sees."""
        return self.stop - self.start


def spans(length: int, window: int, overlap: int) -> list[Span]:
    """Cut a side into windows.

    The last window ends with the side: it is moved back, and is up to 31 pixels smaller than the others.
    Between two windows the weights change over the overlap. The last two may share more; the weights then
    change over the middle of what they share.

    Args:
        length: length of the side, at least 1.
        window: length of a window, at least 32; a shorter side is one window.
        overlap: overlap of neighbours, at most half a window. It becomes up to 31 pixels smaller or larger,
            so that windows begin on multiples of 32.

    Raises:
        ValueError: a window or overlap outside these limits.
    """
    if length < 1 or window < STEP or not 0 <= overlap <= window // 2:
        raise ValueError(
            f"a window must be at least {STEP} and an overlap at most half of it, not {window} and {overlap}"
        )
    stride = min(-(-(window - overlap) // STEP), window // STEP) * STEP
    overlap = window - stride
    steps = max(0, -(-(length - window) // stride))
    starts = [step * stride for step in range(steps)] + [max(0, -(-(length - window) // STEP) * STEP)]
    stops = [start + window for start in starts[:-1]] + [length]
    ramps = []
    for index in range(steps):
        shared = stops[index] - starts[index + 1]
        first = max(starts[index + 1] + shared // 2 - overlap // 2, starts[index] + overlap)
        ramps.append((first, first + overlap))
    rises, falls = [(0, 0), *ramps], [*ramps, (length, length)]
    return [
        Span(start, stop, *rise, *fall)
        for start, stop, rise, fall in zip(starts, stops, rises, falls, strict=True)
    ]


def default_overlap(window: int) -> int:
    """Return the overlap of windows for which none is given."""
    return min(OVERLAP, window // 4)


def weights(span: Span) -> NDArray[np.float32]:
    """Weights of a window from `rise` to `end`, above 0 and at most 1; the ramps are squared sines."""
    rising, falling = (_ramp(length) for length in (span.full - span.rise, span.end - span.fall))
    ones = np.ones(span.fall - span.full)
    return np.concatenate([rising, ones, 1 - falling]).astype(np.float32)


def window_pixels(height: int, width: int, window: int, overlap: int) -> int:
    """Count the pixels that the network is given for a scene, those of overlaps once for each window."""
    rows, columns = (sum(span.size for span in spans(side, window, overlap)) for side in (height, width))
    return rows * columns


class Part:
    """A window's logits, resized to its pixels, and where in the scene they count."""

    def __init__(self, resized: Resized, rows: Span, columns: Span) -> None:
        self.resized, self.rows, self.columns = resized, rows, columns
        device = resized.logits.device
        self.down, self.across = (torch.from_numpy(weights(side)).to(device) for side in (rows, columns))

    def local(self, box: Box) -> Box:
        """Return a box of the scene in the window's own pixels."""
        top, left = self.rows.start, self.columns.start
        return Box(box.top - top, box.left - left, box.bottom - top, box.right - left)

    def weighted(self, box: Box) -> Tensor:
        """Return the weighted logits (rows, columns, K) of a box of the scene."""
        down = self.down[box.top - self.rows.rise : box.bottom - self.rows.rise]
        across = self.across[box.left - self.columns.rise : box.right - self.columns.rise]
        return self.resized.box(self.local(box)).mul_(down[:, None, None] * across[:, None])

    def tail(self, keep: Callable[[Tensor], Tensor]) -> "Part | None":
        """Return what counts for the windows below; `keep` stores its logits and returns them."""
        if self.rows.fall == self.rows.end:
            return None
        resized = self.resized.below(self.rows.fall - self.rows.start)
        resized.logits = keep(resized.logits)
        return Part(resized, self.rows, self.columns)


class Labelled(NamedTuple):
    """The block of the scene that is final once a window has been computed."""

    labels: Tensor
    """(rows, columns), uint8, or int32 for more than 256 classes."""
    confidence: Tensor | None
    """Probability of the label, float32 (rows, columns)."""


class OverlapAdd:
    """Labels the blocks of windows that come in raster order.

    Args:
        columns: number of windows in a row.
        confidence: whether blocks also get the probability of each label.
        keep: stores the logits (rows, columns, K) that wait for the next row of windows, and returns them.
    """

    def __init__(
        self, columns: int, *, confidence: bool = False, keep: Callable[[Tensor], Tensor] = torch.clone
    ) -> None:
        self.confidence, self.keep = confidence, keep
        self.above: list[Part | None] = [None] * columns
        self.row: list[Part | None] = [None] * columns
        self.left: Part | None = None

    def add(self, column: int, part: Part | None) -> Labelled | None:
        """Label the block of the next window; None stands for a window without data, and is its result."""
        if column == 0:
            self.above, self.row, self.left = self.row, [None] * len(self.row), None
        corner = self.above[column - 1] if column else None
        labelled = None
        if part is not None:
            labelled = label_block(part, self.left, self.above[column], corner, confidence=self.confidence)
        self.left = part
        self.row[column] = part.tail(self.keep) if part else None
        return labelled


def compute_part(engine: Engine, pixels: Tensor, rows: Span, columns: Span, name: str | Path) -> Part:
    """Run an engine on a normalised window (bands, H, W), padded to a size that the engine takes.

    Raises:
        EngineError: the logits are not finite, or the engine does not take this size; the message calls the
            window `name`.
    """
    try:
        size = engine.input_size(*pixels.shape[1:])
    except EngineError as error:
        raise EngineError(f"{name}: {error}") from None
    logits = engine(pad_to(pixels[None], *size, 0), image=name)
    return Part(Resized(logits, *size), rows, columns)


@torch.inference_mode()
def label_block(
    own: Part, left: Part | None, above: Part | None, corner: Part | None, *, confidence: bool = False
) -> Labelled:
    """Label the block of a window from its logits and those of the windows before it, where they overlap.

    Logits of K x H x W are never stored: strips of rows are resized, weighted, added up and labelled.

    Args:
        own: the window.
        left, above, corner: the windows to the left, above and diagonally between; None if there is none, or
            one without data.
        confidence: whether to return the probability of each label.
    """
    rows, columns = own.rows, own.columns
    height, width = rows.fall - rows.rise, columns.fall - columns.rise
    logits = own.resized.logits
    labels = torch.empty(height, width, dtype=label_dtype(logits.shape[-1]), device=logits.device)
    sure = torch.empty(height, width, device=logits.device) if confidence else None
    for box, candidates in (
        (Box(rows.rise, columns.rise, rows.full, columns.full), (own, left, above, corner)),
        (Box(rows.rise, columns.full, rows.full, columns.fall), (own, above)),
        (Box(rows.full, columns.rise, rows.fall, columns.full), (own, left)),
        (Box(rows.full, columns.full, rows.fall, columns.fall), (own,)),
    ):
        if box.height == 0 or box.width == 0:
            continue
        parts = [part for part in candidates if part is not None]
        place = labels[box.top - rows.rise :, box.left - columns.rise :][: box.height, : box.width]
        if len(parts) == 1 and sure is None:
            place.copy_(own.resized.labels(own.local(box)))
            continue
        for chunk in own.resized.chunks(box):
            scores = own.weighted(chunk) if len(parts) > 1 else own.resized.box(own.local(chunk))
            for part in parts[1:]:
                scores += part.weighted(chunk).to(scores.device)
            inside = (
                slice(chunk.top - rows.rise, chunk.bottom - rows.rise),
                slice(chunk.left - columns.rise, chunk.right - columns.rise),
            )
            labels[inside] = scores.argmax(dim=-1).to(labels.dtype)
            if sure is not None:
                sure[inside] = scores.softmax(dim=-1).amax(dim=-1)
    return Labelled(labels, sure)


def label_image(
    model: Segmenter | Engine, image: Tensor, window: int, overlap: int, *, name: str | Path = "image"
) -> Tensor:
    """Label an image (bands, H, W) window by window.

    Returns:
        Labels (H, W) on the CPU: uint8, or int32 for more than 256 classes.

    Raises:
        DataError: the model takes other bands than the image has; the message calls it `name`.
        EngineError: the logits are not finite.
    """
    engine = open_engine(model)
    engine.preprocessing.check(image.shape[0], str(image.dtype).removeprefix("torch."), name)
    rows, columns = (spans(side, window, overlap) for side in image.shape[1:])
    labeller, strips = OverlapAdd(len(columns)), []
    for row in rows:
        blocks = []
        for index, column in enumerate(columns):
            pixels = image[:, row.start : row.stop, column.start : column.stop].to(engine.device)
            part = compute_part(engine, engine.preprocessing.apply(pixels), row, column, name)
            labelled = labeller.add(index, part)
            assert labelled is not None
            blocks.append(labelled.labels.cpu())
        strips.append(torch.cat(blocks, dim=1))
    return torch.cat(strips)


def _ramp(length: int) -> NDArray[np.float64]:
    return np.sin((np.arange(length) + 0.5) * (np.pi / 2 / max(length, 1))) ** 2
