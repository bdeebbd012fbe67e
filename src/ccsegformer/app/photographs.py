"""Label a photograph with the probability of each pixel's class."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ccsegformer.app.images import as_png, reduced
from ccsegformer.app.workspace import OpenedModel
from ccsegformer.data.images import read_image
from ccsegformer.data.labels import Classes, colorize
from ccsegformer.files import write_atomically
from ccsegformer.lab.memory import peak_memory
from ccsegformer.labelling.budget import MEMORY, choose_window
from ccsegformer.labelling.engine import Engine
from ccsegformer.labelling.inputs import encode_labels
from ccsegformer.labelling.windows import OverlapAdd, compute_part, spans

ONE_PIECE_PIXELS = 4_000_000
"""Largest photograph that goes through the network at once; a larger one in windows, as scenes do."""


class LabelledPhotograph(NamedTuple):
    """Labels of a photograph.

    Attributes:
        labels: class ids (H, W).
        probability: probability of the class (H, W), uint8: 255 is 1.
        window: side of the windows in pixels; None if it was labelled in one piece.
    """

    labels: NDArray[np.integer]
    probability: NDArray[np.uint8]
    window: int | None


def label_photograph(
    engine: Engine, image: torch.Tensor, name: str, progress: Callable[[float], object] = lambda _: None
) -> LabelledPhotograph:
    """Label uint8 RGB pixels (3, H, W).

    Args:
        engine: network.
        image: pixels.
        name: what messages call the image.
        progress: called after each window with the share that is done; what it raises ends the work.

    Raises:
        DataError: the model takes other images.
        EngineError: the logits are not finite, or the engine fails.
    """
    engine.preprocessing.check(len(image), "uint8", name)
    height, width = image.shape[1:]
    side, overlap, window = max(32, height, width), 0, None
    if engine.fixed_size is not None or height * width > ONE_PIECE_PIXELS:
        window, overlap = choose_window(engine, None, None, MEMORY)
        side = window
    rows, columns = (spans(length, side, overlap) for length in (height, width))
    if len(rows) * len(columns) == 1:
        window = None
    labels = np.empty((height, width), np.int32)
    probability = np.empty((height, width), np.uint8)
    adder = OverlapAdd(len(columns), confidence=True)
    for number, row in enumerate(rows):
        for index, column in enumerate(columns):
            progress((number * len(columns) + index) / (len(rows) * len(columns)))
            pixels = image[:, row.start : row.stop, column.start : column.stop].to(engine.device)
            part = compute_part(engine, engine.preprocessing.apply(pixels), row, column, name)
            found = adder.add(index, part)
            assert found is not None and found.confidence is not None
            block = np.s_[row.rise : row.fall, column.rise : column.fall]
            labels[block] = found.labels.cpu().numpy()
            probability[block] = (found.confidence.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return LabelledPhotograph(labels, probability, window)


def write_labelled_photograph(
    path: Path,
    name: str,
    model: OpenedModel,
    folder: Path,
    progress: Callable[[float], object],
    peaks: dict[tuple[Any, ...], int],
) -> tuple[dict[str, Any], NDArray[np.integer]]:
    """Label the photograph at `path`, write its pictures to a folder; return what the page says, and labels.

    `values.png` has the class in red (low byte) and green (high byte) and the probability in blue, at the
    size that the page shows; at full size, `labels.png` has class ids and `overlay.png` the colours over the
    image.

    Compiling, which happens once for each size, counts in the memory, see `Workspace.peaks`, not in the time.

    Raises:
        DataError, EngineError: as `label_photograph`.
    """
    image = read_image(path)
    engine, classes = model.engine, model.classes
    size = (model.key, *image.shape[1:])
    found: list[LabelledPhotograph] = []
    seconds = 0.0

    def run() -> None:
        nonlocal seconds
        if size not in peaks and image[0].numel() <= ONE_PIECE_PIXELS:
            label_photograph(engine, image, name, progress)  # prepares the network for this size
        begun = time.perf_counter()
        found.append(label_photograph(engine, image, name, progress))
        seconds = time.perf_counter() - begun

    memory = largest_peak(peaks, size, peak_memory(run, engine.device.type))
    labels, probability, window = found[0]
    values = np.stack([labels & 255, labels >> 8, probability], axis=-1).astype(np.uint8)
    folder.mkdir(parents=True)
    write_atomically(folder / "values.png", as_png(reduced(values)))
    write_atomically(folder / "labels.png", encode_labels(labels, classes))
    overlay = image.permute(1, 2, 0).numpy() // 2 + colorize(labels, classes) // 2
    write_atomically(folder / "overlay.png", as_png(overlay))
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    about = described(model, counts, seconds, memory)
    return {**about, "window": window}, labels


def largest_peak(peaks: dict[tuple[Any, ...], int], size: tuple[Any, ...], memory: int) -> int:
    """Keep the largest measurement of a model and size, and return it."""
    peaks[size] = max(memory, peaks.get(size, 0))
    return peaks[size]


def described(model: OpenedModel, counts: NDArray[np.integer], seconds: float, memory: int) -> dict[str, Any]:
    """Return what the page says of a labelled image: shares of the classes (K,), time and peak memory."""
    shares = counts / max(1, counts.sum())
    return {
        "model": model.key,
        "shares": [round(float(share), 6) for share in shares],
        "seconds": seconds,
        "memory": memory,
    }


def colored_png(labels: NDArray[np.integer], nodata: int, classes: Classes) -> bytes:
    """Draw labels (H, W) in the colours of the classes, transparent where they are `nodata`, as a PNG."""
    table = np.array([(*color, 255) for color in classes.palette] + [(0, 0, 0, 0)], np.uint8)
    known = (labels != nodata) & (labels < len(classes))
    return as_png(table[np.where(known, labels, len(classes))])
