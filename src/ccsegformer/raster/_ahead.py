"""Read the windows of a scene while those before are used, over a network several at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader

from ccsegformer.raster.read import Box, fill_gaps, open_raster, read_box
from ccsegformer.raster.source_files import reads_network

READERS = 16
"""Threads that read over a network."""
PIECE = 512
"""Least side, in pixels, of what a thread reads at a time."""
AHEAD = 64 * 2**20
"""Bytes of pixels that are read ahead over a network, or one window if that is more."""

Window = tuple[NDArray[np.uint8 | np.float32], NDArray[np.bool_]]
"""Image (bands, H, W), and which of its pixels (H, W) have data."""

_Values = tuple[NDArray[np.generic], NDArray[np.bool_]]
"""What `read_box` returns."""


@contextmanager
def read_ahead(
    path: str | Path, bands: Sequence[int] | None, windows: list[Box]
) -> Iterator[Iterator[Window]]:
    """Read windows, image and validity, in threads while those before are used.

    From a disk, one thread reads one window after another. Over a network, where most of the time is spent
    waiting, neighbours make a strip, and several threads read its blocks, each block always by the same
    thread, in whose part of GDAL's cache it may still be.
    """
    is_remote = reads_network(path)
    with open_raster(path) as source:
        pixel = len(bands or source.indexes) * np.dtype(source.dtypes[0]).itemsize
        step = [-(-PIECE // side) * side for side in source.block_shapes[0]]
    limit = AHEAD // 4 // pixel if is_remote else 0
    strips = deque(_strips(windows, limit))
    largest = max(map(_area, strips), default=1)
    depth = max(1, AHEAD // pixel // largest) if is_remote else 1
    with _readers(path, bands, READERS if is_remote else 1) as readers:

        def submit(strip: list[Box]) -> list[tuple[Box, Future[_Values]]]:
            box = strip[0]._replace(right=strip[-1].right)
            pieces = _pieces(box, *step) if is_remote else [box]
            places = [7 * (piece.top // step[0]) + piece.left // step[1] for piece in pieces]
            futures = [
                readers[place % len(readers)](piece) for place, piece in zip(places, pieces, strict=True)
            ]
            return list(zip(pieces, futures, strict=True))

        coming: deque[tuple[list[Box], list[tuple[Box, Future[_Values]]]]] = deque()

        def go_on() -> None:
            while strips and len(coming) < depth:
                coming.append((strips[0], submit(strips.popleft())))

        def follow() -> Iterator[Window]:
            go_on()
            while coming:
                strip, futures = coming.popleft()
                pieces = [(box, future.result()) for box, future in futures]
                go_on()
                yield from _windows(strip, pieces)

        try:
            yield follow()
        finally:
            for _, futures in coming:
                for _, future in futures:
                    future.cancel()


@contextmanager
def _readers(
    path: str | Path, bands: Sequence[int] | None, count: int
) -> Iterator[list[Callable[[Box], Future[_Values]]]]:
    """Yield functions that read boxes, each in a thread that opens the raster for itself."""
    with ExitStack() as stack:

        def reader() -> Callable[[Box], Future[_Values]]:
            pool = stack.enter_context(ThreadPoolExecutor(1))
            opened: list[DatasetReader] = []
            stack.callback(lambda: pool.submit(close).result())  # in the thread that opened it

            def close() -> None:
                for source in opened:
                    source.close()

            def read(box: Box) -> _Values:
                if not opened:
                    opened.append(open_raster(path))
                return read_box(opened[0], box, bands)

            return lambda box: pool.submit(read, box)

        yield [reader() for _ in range(count)]


def _pieces(box: Box, height: int, width: int) -> list[Box]:
    """Cut a box at the multiples of a height and a width."""
    rows = [box.top, *range((box.top // height + 1) * height, box.bottom, height), box.bottom]
    columns = [box.left, *range((box.left // width + 1) * width, box.right, width), box.right]
    return [
        Box(top, left, bottom, right) for top, bottom in pairwise(rows) for left, right in pairwise(columns)
    ]


def _area(strip: list[Box]) -> int:
    return strip[0].height * (strip[-1].right - strip[0].left)


def _strips(windows: list[Box], limit: int) -> Iterator[list[Box]]:
    """Group neighbours in a row into strips of at most `limit` pixels; a window may be larger by itself."""
    strip: list[Box] = []
    for window in windows:
        if strip:
            first, last = strip[0], strip[-1]
            in_row = window[::2] == first[::2] and last.left < window.left <= last.right
            if not in_row or window.height * (window.right - first.left) > limit:
                yield strip
                strip = []
        strip.append(window)
    if strip:
        yield strip


def _windows(strip: list[Box], pieces: list[tuple[Box, _Values]]) -> Iterator[Window]:
    """Put the pieces of a strip together, and cut its windows out."""
    first, (values, valid) = strip[0], pieces[0][1]
    if len(pieces) > 1:
        size = first.height, strip[-1].right - first.left
        values, valid = np.empty((len(values), *size), values.dtype), np.empty(size, bool)
        for box, (part, there) in pieces:
            rows = slice(box.top - first.top, box.bottom - first.top)
            columns = slice(box.left - first.left, box.right - first.left)
            values[:, rows, columns], valid[rows, columns] = part, there
    if len(strip) == 1:
        yield fill_gaps(values, valid), valid
        return
    for window in strip:
        columns = slice(window.left - first.left, window.right - first.left)
        there = valid[:, columns].copy()
        yield fill_gaps(values[..., columns].copy(), there), there  # windows overlap
