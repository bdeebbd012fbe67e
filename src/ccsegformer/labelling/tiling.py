"""Where windows lie along the sides of a scene, and how much each counts where two overlap: arithmetic only.

A side has at most two windows at any pixel that count there, and their weights sum to 1, so what a window
gives is added up and never divided. The weights of a pixel are the product of its row's and its column's.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

STEP = 32
"""Windows begin on multiples of the network's coarsest stride: its grids lie as over a whole scene."""


OVERLAP = 128
"""Pixels."""


class Span(NamedTuple):
    """A window along one side, in pixels from the scene's edge; ends are not included.

    The network sees `start` to `stop`. The window counts from `rise` on, wholly from `full` on, less and less
    from `fall` to `end`. The window before falls where this one rises; at the scene's edges nothing does.
    In raster order, `rise` to `fall` is final once this window is done.
    """

    start: int
    stop: int
    rise: int
    full: int
    fall: int
    end: int

    @property
    def size(self) -> int:
        """How many pixels the network sees."""
        return self.stop - self.start

    @property
    def final(self) -> int:
        """How many pixels are final once this window is done."""
        return self.fall - self.rise


def spans(length: int, window: int, overlap: int, *, taper: bool = True) -> list[Span]:
    """Cut a side into windows.

    The last window ends with the side, so it is moved back, and ends up to 31 pixels smaller than the others.
    Between two windows the weights change over the overlap; of the last one's larger overlap they take
    as much, from its middle on.

    Args:
        length: of the side, at least 1.
        window: at least 32; a shorter side is one window.
        overlap: of neighbours, at most half a window. Windows begin on multiples of 32, so it may become up
            to 31 pixels smaller; or larger, to what a window has beyond a multiple of 32.
        taper: let the weights change smoothly; otherwise each window is cut in the middle of the overlap.

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
        ramps.append((first, first + overlap) if taper else (first + overlap // 2,) * 2)
    rises, falls = [(0, 0), *ramps], [*ramps, (length, length)]
    return [
        Span(start, stop, *rise, *fall)
        for start, stop, rise, fall in zip(starts, stops, rises, falls, strict=True)
    ]


def default_overlap(window: int) -> int:
    """The overlap of windows where none is given: `OVERLAP`, or a quarter of a small window."""
    return min(OVERLAP, window // 4)


def weights(span: Span) -> NDArray[np.float32]:
    """How much a window counts, from `rise` to `end`: above 0, at most 1; it rises as a squared sine."""
    rising, falling = (_ramp(length) for length in (span.full - span.rise, span.end - span.fall))
    ones = np.ones(span.fall - span.full)
    return np.concatenate([rising, ones, 1 - falling]).astype(np.float32)


def window_pixels(height: int, width: int, window: int, overlap: int) -> int:
    """How many pixels the network is given for a scene, those of overlaps once for each window."""
    rows, columns = (sum(span.size for span in spans(side, window, overlap)) for side in (height, width))
    return rows * columns


def _ramp(length: int) -> NDArray[np.float64]:
    return np.sin((np.arange(length) + 0.5) * (np.pi / 2 / max(length, 1))) ** 2
