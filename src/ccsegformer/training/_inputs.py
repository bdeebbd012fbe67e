"""What a run trains on: images as they are, or windows of georeferenced scenes."""

import os
import sys
from typing import NamedTuple

from ccsegformer.data.dataset import DrawnSamples, LabelledImages
from ccsegformer.data.pixels import BandStatistics
from ccsegformer.data.transforms import window_size
from ccsegformer.errors import RecipeError
from ccsegformer.raster.dataset import TILE, Scenes
from ccsegformer.raster.random_windows import RandomWindows, band_statistics
from ccsegformer.training.recipe import Recipe, WindowsSection


class Inputs(NamedTuple):
    """The samples and what their pixels are made of; by default 8-bit RGB."""

    samples: LabelledImages | DrawnSamples
    bands: int = 3
    rgb: tuple[int, int, int] | None = None  # which bands, from 0, are red, green and blue
    statistics: BandStatistics | None = None


def training_inputs(recipe: Recipe, dataset: LabelledImages, *, progress: bool) -> Inputs:
    """The windows of scenes that the recipe wants, with the statistics of their bands; other data as is.

    Three bands of 8 bits keep ImageNet's statistics, which pretrained weights and other tools expect.

    Raises:
        RecipeError: windows wanted of images, or a transform of colours of other bands than 8-bit RGB.
        DataError: the scenes cannot be used.
    """
    if not isinstance(dataset, Scenes):
        if recipe.windows != WindowsSection():
            raise RecipeError(f"windows: is for georeferenced scenes, but {recipe.data} holds images")
        return Inputs(dataset)
    bands = dataset.bands
    for place, transform in enumerate(recipe.transforms):
        if transform.needs_rgb and not bands.is_rgb:
            raise RecipeError(
                f"transforms.{place}: {transform.name} is for 8-bit RGB, but the scenes of {recipe.data} "
                f"have {bands}"
            )
    size = recipe.windows.size or window_size(recipe.transforms, TILE)
    windows = RandomWindows(dataset, size=size, rare_classes=recipe.windows.rare_classes)
    statistics = None if bands.is_rgb else band_statistics(dataset)
    if progress and os.environ.get("RANK", "0") == "0":
        whose, count = "their own" if statistics else "ImageNet's", len(dataset.scenes)
        print(
            f"{recipe.data}: {count} scene{'s' * (count > 1)} of {bands}, normalised by {whose} statistics; "
            f"an epoch is {len(windows)} windows of {size} pixels",
            file=sys.stderr,
        )
    return Inputs(windows, bands.number, bands.rgb, statistics)
