"""The table of classes that `ccsegformer predict` prints."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ccsegformer.data.labels import Classes

SWATCH = "\N{LOWER HALF BLOCK}\N{LOWER HALF BLOCK}"


class ClassShares:
    """How much of the images each class takes, counted in the files of class ids as they are written."""

    def __init__(self, classes: Classes) -> None:
        self.classes, self.images = classes, 0
        self.pixels = np.zeros(len(classes), np.int64)

    def add(self, written: Sequence[Path]) -> None:
        """Count an image, given the two files written for it. Maps of scenes are not read again."""
        if len(written) != 2 or not written[1].name.endswith("_overlay.png"):
            return
        with Image.open(written[0]) as labels:
            self.pixels += np.bincount(np.asarray(labels).ravel(), minlength=len(self.classes))
        self.images += 1

    def print(self, seconds: float, console: Console | None = None) -> None:
        """Print the classes that were found, the largest share first; nothing if no image was counted."""
        if not self.images:
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column()
        table.add_column()
        table.add_column(justify="right")
        total = self.pixels.sum()
        for label in np.argsort(-self.pixels, kind="stable"):
            if self.pixels[label] >= total / 2000:  # shown as 0.1% at least
                red, green, blue = self.classes.palette[label]
                share = f"{self.pixels[label] / total:.1%}"
                table.add_row(
                    f"[rgb({red},{green},{blue})]{SWATCH}[/]", Text(self.classes.names[label]), share
                )
        console = console or Console(highlight=False)
        console.print(table)
        images = "1 image" if self.images == 1 else f"{self.images} images"
        console.print(f"{images} in {seconds:.1f} s", highlight=False)
