"""Draw the pictures of the documentation that no other command makes.

python docs/pictures.py
"""

import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import rasterio
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ccsegformer import load_model, predict_labels, predict_scene
from ccsegformer.data.labels import colorize
from ccsegformer.data.procedural.geotiff import write_scenes
from ccsegformer.labelling.example import write_example_scene

IMAGES = Path(__file__).parent / "images"
INK, QUIET, PAPER, ORANGE = "#1f2933", "#5f6c7b", "#e8edf2", "#c4500c"
SIDE = 9


def draw_cross(path: Path) -> None:
    """Draw what a position sees after one criss-cross layer, why two are enough, and what they see."""
    figure = Figure(figsize=(10, 3.7), layout="constrained")
    own, other = (3, 2), (6, 7)  # row, column
    rows, columns = np.indices((SIDE, SIDE))
    cross = (rows == own[0]) | (columns == own[1])
    panels = (
        ("One layer: its row and its column", cross.astype(float)),
        ("Two layers: through two corners", cross.astype(float)),
        ("Two layers: every position", np.ones((SIDE, SIDE))),
    )
    for axes, (title, seen) in zip(figure.subplots(1, 3), panels, strict=True):
        _draw_grid(axes, seen, own)
        axes.set_title(title, color=INK, fontsize=11, loc="left")
    middle = figure.axes[1]
    middle.add_patch(Rectangle((other[1], other[0]), 0.9, 0.9, color=INK))
    for corner in ((own[0], other[1]), (other[0], own[1])):
        for start, end in ((other, corner), (corner, own)):
            middle.annotate(
                "",
                (end[1] + 0.45, end[0] + 0.45),
                (start[1] + 0.45, start[0] + 0.45),
                arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 1.3, "shrinkA": 7, "shrinkB": 7},
            )
    with mpl.rc_context({"svg.hashsalt": "cross", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def _draw_grid(axes: Axes, seen: np.ndarray, own: tuple[int, int]) -> None:
    for row in range(SIDE):
        for column in range(SIDE):
            place = (row, column)
            color = ORANGE if place == own or seen[place] else PAPER
            alpha = 1.0 if place == own or not seen[place] else 0.4
            axes.add_patch(Rectangle((column, row), 0.9, 0.9, color=color, alpha=alpha, linewidth=0))
    axes.set_xlim(-0.1, SIDE)
    axes.set_ylim(SIDE, -0.1)
    axes.set_aspect("equal")
    axes.axis("off")


def draw_example(path: Path) -> None:
    """Put the example scene beside its overlay, as `ccsegformer predict example` writes them."""
    model, classes = load_model("example")
    with tempfile.TemporaryDirectory() as folder:
        image = np.asarray(Image.open(write_example_scene(Path(folder))))
    labels = predict_labels(model, torch.tensor(image).permute(2, 0, 1)).numpy()
    _beside(image, image // 2 + colorize(labels, classes) // 2).save(path, quality=85)


def draw_scene(path: Path) -> None:
    """Put a generated GeoTIFF beside its map."""
    model, classes = load_model("example")
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder) / "scenes", size=512, training=1, validation=1)
        (scene,) = sorted(
            set(Path(folder).glob("scenes/validation/*.tif")) - set(Path(folder).rglob("*_mask*"))
        )
        predict_scene(model, scene, Path(folder) / "map.tif", classes=classes)
        with rasterio.open(scene) as source, rasterio.open(Path(folder) / "map.tif") as found:
            image, labels = source.read().transpose(1, 2, 0), found.read(1)
    _beside(image, colorize(labels, classes)).save(path, quality=85)


def _beside(left: np.ndarray, right: np.ndarray) -> Image.Image:
    gap = np.full((len(left), 8, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([left, gap, right], axis=1).astype(np.uint8))


if __name__ == "__main__":
    draw_cross(IMAGES / "cross.svg")
    draw_example(IMAGES / "example.jpg")
    draw_scene(IMAGES / "tutorial-scene.jpg")
