"""What a run trains on: images, or windows of georeferenced scenes."""

import os
import sys
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ccsegformer.data.chosen import KeptImages
from ccsegformer.data.dataset import DrawnSamples, LabelledImages
from ccsegformer.data.objects import ObjectImages
from ccsegformer.data.pixels import BandStatistics, measure_bands, spread
from ccsegformer.data.transforms import window_size
from ccsegformer.errors import RecipeError
from ccsegformer.raster.dataset import TILE, Scenes
from ccsegformer.raster.random_windows import RandomWindows, band_statistics
from ccsegformer.training.recipe import Recipe, WindowsSection

STATISTICS_SAMPLES = 128
"""Most samples of a data set object that its band statistics are measured on."""


class Inputs(NamedTuple):
    """Samples and their bands; 8-bit RGB by default."""

    samples: LabelledImages | DrawnSamples
    bands: int = 3
    rgb: tuple[int, int, int] | None = None  # which bands, from 0, are red, green and blue
    statistics: BandStatistics | None = None
    scene_bands: tuple[int, ...] | None = None  # numbers, from 1, if they were chosen


def training_inputs(recipe: Recipe, dataset: LabelledImages | DrawnSamples, *, progress: bool) -> Inputs:
    """Prepare the samples to train on: windows of scenes, or the images of other data sets.

    8-bit RGB keeps ImageNet's statistics, which pretrained weights and other tools expect. Other bands are
    normalised by their own, measured here.

    Raises:
        RecipeError: `windows` for images, or a colour transform for bands other than 8-bit RGB.
        DataError: The data cannot be used.
    """
    if isinstance(dataset, Scenes):
        return _scene_inputs(recipe, dataset, progress=progress)
    if recipe.windows != WindowsSection():
        raise RecipeError(f"windows: is for georeferenced scenes, but {recipe.data} holds images")
    source = dataset.images if isinstance(dataset, KeptImages) else dataset
    if isinstance(source, ObjectImages | DrawnSamples):
        return _object_inputs(recipe, dataset, progress=progress)
    return Inputs(dataset)


def _scene_inputs(recipe: Recipe, scenes: Scenes, *, progress: bool) -> Inputs:
    bands = scenes.bands
    if not bands.is_rgb:
        _check_transforms(recipe, str(bands))
    size = recipe.windows.size or window_size(recipe.transforms, TILE)
    windows = RandomWindows(scenes, size=size, rare_classes=recipe.windows.rare_classes)
    statistics = None if bands.is_rgb else band_statistics(scenes)
    if progress:
        whose, count = "their own" if statistics else "ImageNet's", len(scenes.scenes)
        tell(
            f"{recipe.data}: {count} scene{'s' * (count > 1)} of {bands}, normalised by {whose} statistics; "
            f"an epoch is {len(windows)} windows of {size} pixels"
        )
    chosen = None if scenes.chosen_bands is None else tuple(scenes.chosen_bands)
    return Inputs(windows, bands.number, bands.rgb, statistics, chosen)


def _object_inputs(recipe: Recipe, dataset: LabelledImages | DrawnSamples, *, progress: bool) -> Inputs:
    first = _pixels(dataset, 0)
    if len(first) == 3 and first.dtype == np.uint8:
        return Inputs(dataset)
    bands = f"{len(first)} band{'s' * (len(first) > 1)} of {first.dtype}"
    _check_transforms(recipe, bands)
    measured = spread(len(dataset), STATISTICS_SAMPLES)
    statistics = measure_bands(_pixels(dataset, index) for index in measured)
    if progress:
        tell(
            f"{recipe.data}: {bands}, normalised by their own statistics, measured on "
            f"{len(measured)} sample{'s' * (len(measured) > 1)}"
        )
    return Inputs(dataset, len(first), None, statistics)


def _pixels(dataset: LabelledImages | DrawnSamples, index: int) -> NDArray[np.generic]:
    """Return the pixels (bands, N) of a sample."""
    if isinstance(dataset, DrawnSamples):
        image = dataset.draw(index, torch.Generator().manual_seed(index))["image"]
    else:
        image = dataset[index]["image"]
    return image.flatten(1).numpy()


def _check_transforms(recipe: Recipe, bands: str) -> None:
    """Refuse colour transforms for other bands than 8-bit RGB."""
    for place, transform in enumerate(recipe.transforms):
        if transform.needs_rgb:
            raise RecipeError(
                f"transforms.{place}: {transform.name} is for 8-bit RGB, but {recipe.data} has {bands}"
            )


def tell(line: str) -> None:
    """Print to stderr, in the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
