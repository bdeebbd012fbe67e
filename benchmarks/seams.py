"""Compare a map made in windows with one of the whole scene in a single window, at the seams and elsewhere.

`python -m benchmarks.seams MODEL [--side 1024] [--window 256 --window 512 ...] [--overlap 32 ...]`, with a
model trained on the embedded scenes, for instance by `ccsegformer train src/ccsegformer/cli/demo.yaml
--output MODEL`.
"""

import argparse

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccsegformer.data.procedural.scenes import scene
from ccsegformer.labelling.loading import load_model
from ccsegformer.labelling.windows import label_image, spans, window_pixels
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation

REACH = 16
"""Pixels on either side of a cut, where one window hands over to the next, that count as seam."""

LARGE = 20_000
"""Side of the scene for which the cost is computed: window pixels per pixel of the scene."""


def cut_places(side: int, window: int, overlap: int) -> list[int]:
    """Return the cuts of a side: where two neighbouring windows have equal weight."""
    return [(span.rise + span.full) // 2 for span in spans(side, window, overlap)[1:]]


def seam_mask(height: int, width: int, window: int, overlap: int) -> NDArray[np.bool_]:
    """Return the mask (H, W) of pixels within `REACH` of a cut."""
    near = []
    for side in (height, width):
        places, cuts = np.arange(side), cut_places(side, window, overlap)
        near.append(np.any([(places >= cut - REACH) & (places < cut + REACH) for cut in cuts], axis=0))
    rows, columns = (np.broadcast_to(each, side) for each, side in zip(near, (height, width), strict=True))
    return rows[:, None] | columns[None, :]


def disagreement(labels: Tensor, whole: Tensor, seams: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the share of pixels (H, W) labelled differently from `whole`, at seams and elsewhere."""
    differ = (labels != whole).numpy()
    return differ[seams].mean(), differ[~seams].mean()


def steps(labels: Tensor, whole: Tensor, window: int, overlap: int) -> tuple[float, float]:
    """Return the share of the cuts' length with class borders that the whole scene's map lacks.

    This is what people see as a seam: a border between two classes along a window's edge. The second figure
    is the same for lines halfway between two cuts, as a baseline without seams.
    """
    shares = []
    for middle in (False, True):
        found, total = 0, 0
        for labelled, reference in ((labels, whole), (labels.T, whole.T)):
            cuts = cut_places(len(labelled), window, overlap)
            for cut, following in zip(cuts, [*cuts[1:], len(labelled)], strict=False):
                line = (cut + following) // 2 if middle else cut
                edges, there = (grid[line - 1] != grid[line] for grid in (labelled, reference))
                found += int((edges & ~there).sum())
                total += edges.numel()
        shares.append(found / max(total, 1))
    return shares[0], shares[1]


def compare(
    model: CrissCrossSegformerForSemanticSegmentation,
    images: list[Tensor],
    window: int,
    overlap: int,
    wholes: list[Tensor],
) -> tuple[float, ...]:
    """Return disagreement at seams and elsewhere, and steps at cuts and elsewhere, averaged over images."""
    rows = []
    for image, whole in zip(images, wholes, strict=True):
        height, width = image.shape[1:]
        labels = label_image(model, image, window, overlap)
        seams = seam_mask(height, width, window, overlap)
        rows.append((*disagreement(labels, whole, seams), *steps(labels, whole, window, overlap)))
    return tuple(float(column) for column in np.mean(rows, axis=0))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of the trained model")
    parser.add_argument("--side", type=int, default=1024, help="side of the scenes, in pixels")
    parser.add_argument("--count", type=int, default=2, help="number of scenes")
    parser.add_argument(
        "--window", type=int, action="append", help="in pixels; may be repeated; default: 256 and 512"
    )
    parser.add_argument(
        "--overlap", type=int, action="append", help="in pixels; may be repeated; default: 32, 64, 128"
    )
    given = parser.parse_args()
    model, _ = load_model(given.model)
    images = [
        torch.from_numpy(scene(1, index, size=given.side)[0]).permute(2, 0, 1) for index in range(given.count)
    ]
    wholes = [label_image(model, image, given.side, 0) for image in images]
    print(
        f"{given.count} scenes of {given.side} x {given.side} (seed 1), attention {model.config.attention}, "
        f"{torch.get_num_threads()} threads\n"
    )
    print("| window | overlap | differ at seams, % | elsewhere | steps at cuts, % | elsewhere | cost |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for window in given.window or (256, 512):
        for overlap in (0, *(given.overlap or (32, 64, 128))):
            found = compare(model, images, window, overlap, wholes)
            figures = " | ".join(f"{100 * figure:.2f}" for figure in found)
            cost = window_pixels(LARGE, LARGE, window, overlap) / LARGE**2
            print(f"| {window} | {overlap} | {figures} | {cost:.2f} |", flush=True)


if __name__ == "__main__":
    main()
