"""Draw a validation scene, its truth and each attention's map side by side, from a finished study.

python -m studies.satellite.pictures --data DIR --output FILE.jpg
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from ccsegformer.data.labels import Classes, colorize
from ccsegformer.errors import CCSegformerError
from ccsegformer.raster.dataset import Scenes
from ccsegformer.raster.read import Box, open_raster
from studies.satellite.options import Run, default_output
from studies.satellite.summary import NAMES
from studies.tables import INK

SIDE = 640  # longer side of a panel, in pixels


def panels(data: Path, runs: Path, window: int, size: int, seed: int) -> dict[str, NDArray[np.uint8]]:
    """Return the first validation scene, its truth and its maps, uint8 RGB (H, W, 3) by title.

    Args:
        window: Side of the training window, in pixels.
        size: Side of the mapping window, in pixels.

    Raises:
        CCSegformerError: There are no such maps, or a scene cannot be read.
    """
    scenes = Scenes(data, "validation")
    scene = scenes.scenes[0]
    sample = scenes.sample(0, Box(0, 0, scene.height, scene.width), scene.name)
    found = {
        "scene": np.moveaxis(sample["image"].numpy(), 0, 2),
        "truth": colorize(sample["mask"].numpy(), scenes.classes),
    }
    for attention in NAMES:
        path = runs / str(Run(attention, window, seed)) / f"map-{size}" / f"{scene.name}.tif"
        if path.exists():
            with open_raster(path) as source:
                labels = source.read(1).astype(np.int32)
            # A uint8 map holds 255 where there are no data, even if the ignore index is larger.
            labels[labels >= len(scenes.classes)] = scenes.classes.ignore_index
            found[NAMES[attention]] = colorize(labels, scenes.classes)
    if len(found) == 2:
        raise CCSegformerError(f"{runs}: no maps of {scene.name}, trained with {window}, mapped with {size}")
    return found


def draw(shown: dict[str, NDArray[np.uint8]], classes: Classes, path: Path) -> None:
    """Write the panels, two per row, with a legend of the classes below."""
    rows = -(-len(shown) // 2)
    height, width = next(iter(shown.values())).shape[:2]
    scale = SIDE / max(height, width)
    figure = Figure(figsize=(8, 0.6 + rows * (0.3 + 4 * height / max(height, width))), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (title, image) in zip(grid.flat, shown.items(), strict=False):
        how = Image.Resampling.BOX if title == "scene" else Image.Resampling.NEAREST
        smaller = Image.fromarray(image).resize((round(width * scale), round(height * scale)), how)
        axes.imshow(np.asarray(smaller), interpolation="none")
        axes.set_title(title, loc="left", color=INK, fontsize=11)
    colors = [np.array(color) / 255 for color in classes.palette]
    patches = [
        Patch(facecolor=color, edgecolor=INK, linewidth=0.3, label=name)
        for color, name in zip(colors, classes.names, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=5, frameon=False, labelcolor=INK)
    figure.savefig(path, dpi=130, pil_kwargs={"quality": 75, "optimize": True})


def main() -> None:
    """Draw the picture that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the study's scenes")
    parser.add_argument("--runs", type=Path, help="folder of the study's runs; default: the study's own")
    parser.add_argument("--window", type=int, default=512, help="side of the training window, in pixels")
    parser.add_argument("--map", type=int, default=1024, help="side of the mapping window, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JPEG file to write")
    given = parser.parse_args()
    try:
        runs = given.runs or default_output(given.data)
        shown = panels(given.data, runs, given.window, given.map, given.seed)
        draw(shown, Scenes(given.data, "validation").classes, given.output)
    except CCSegformerError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
