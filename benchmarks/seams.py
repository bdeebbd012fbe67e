"""How much a map made in windows differs from that of the whole scene in one, at the seams and elsewhere.

`python -m benchmarks.seams MODEL [--side 1024] [--window 256 --window 512 ...] [--overlap 32 ...]`: MODEL is
trained on the embedded scenes, such as by `ccsegformer train src/ccsegformer/cli/demo.yaml --output MODEL`.
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
"""Pixels from where one window hands over to the next, on either side, that are counted as seam."""

LARGE = 20_000
"""Side of the scene for which the cost is told: window pixels a pixel of the scene."""


def seam_mask(height: int, width: int, window: int, overlap: int) -> NDArray[np.bool_]:
    """Which pixels (H, W) lie within `REACH` of where neighbouring windows meet in equal parts."""
    near = []
    for side in (height, width):
        cuts = [(span.rise + span.full) // 2 for span in spans(side, window, overlap)[1:]]
        places = np.arange(side)
        near.append(np.any([(places >= cut - REACH) & (places < cut + REACH) for cut in cuts], axis=0))
    rows, columns = (np.broadcast_to(each, side) for each, side in zip(near, (height, width), strict=True))
    return rows[:, None] | columns[None, :]


def disagreement(labels: Tensor, whole: Tensor, seams: NDArray[np.bool_]) -> tuple[float, float]:
    """The share of pixels (H, W) with another label than in `whole`: at the seams, and away from them."""
    differ = (labels != whole).numpy()
    return differ[seams].mean(), differ[~seams].mean()


def steps(labels: Tensor, whole: Tensor, window: int, overlap: int) -> tuple[float, float]:
    """Edges along the cuts that the whole scene's map has not, as a share of the cuts' length.

    This is what a person sees as a seam: a border between two classes that runs along a window's edge. The
    second figure is the same for lines halfway between two cuts: what there would be without seams.
    """
    shares = []
    for middle in (False, True):
        found, total = 0, 0
        for labelled, reference in ((labels, whole), (labels.T, whole.T)):
            for span in spans(len(labelled), window, overlap)[1:]:
                cut = (span.rise + span.full) // 2
                line = (cut + span.fall) // 2 if middle else cut
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
    """Disagreement at the seams and elsewhere, steps at the cuts and elsewhere: means over images."""
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
    parser.add_argument("model")
    parser.add_argument("--side", type=int, default=1024, help="of the scenes")
    parser.add_argument("--count", type=int, default=2, help="of scenes")
    parser.add_argument("--window", type=int, action="append")
    parser.add_argument("--overlap", type=int, action="append")
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
        for overlap in [0, *(given.overlap or (32, 64, 128))]:
            found = compare(model, images, window, overlap, wholes)
            figures = " | ".join(f"{100 * figure:.2f}" for figure in found)
            cost = window_pixels(LARGE, LARGE, window, overlap) / LARGE**2
            print(f"| {window} | {overlap} | {figures} | {cost:.2f} |", flush=True)


if __name__ == "__main__":
    main()
