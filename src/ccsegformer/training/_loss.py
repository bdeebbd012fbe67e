"""The loss of a recipe, with class weights that may depend on the training masks."""

import numpy as np
import torch
from numpy.typing import NDArray

from ccsegformer.data.dataset import DrawnSamples, LabelledImages
from ccsegformer.errors import DataError, RecipeError
from ccsegformer.models.losses import SegmentationLoss
from ccsegformer.training._inputs import tell
from ccsegformer.training._survey import Survey
from ccsegformer.training.recipe import Recipe


def segmentation_loss(
    recipe: Recipe, dataset: LabelledImages | DrawnSamples, survey: Survey | None = None, *, progress: bool
) -> SegmentationLoss:
    """Return the loss of a recipe. "balanced" weights are those of the survey, or read all masks once.

    Raises:
        RecipeError: The class weights do not match the classes.
        DataError: The data cannot be read, or have no labelled pixel.
    """
    wanted, names = recipe.loss, dataset.classes.names
    weights = wanted.class_weights
    if weights == "balanced":
        weights = balanced_weights(survey.pixels(len(names)) if survey else _count_pixels(dataset))
        if progress:
            each = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, weights, strict=True))
            tell(f"{recipe.data}: class weights {each if len(names) <= 20 else f'of {len(names)} classes'}")
    elif weights is not None and len(weights) != len(names):
        raise RecipeError(f"loss.class_weights: {len(weights)} weights for {len(names)} classes")
    values = wanted.model_dump(exclude={"class_weights"})
    return SegmentationLoss(**values, class_weights=weights)


def balanced_weights(counts: NDArray[np.int64]) -> tuple[float, ...]:
    """Return n / (K c) for each class with c of the n pixels, of K classes that occur; 1 for the others.

    All classes that occur then have the same share of the loss.

    Raises:
        DataError: No pixel is counted.
    """
    if not counts.any():
        raise DataError("loss.class_weights: no pixel is labelled, so classes cannot be balanced")
    occurring = np.count_nonzero(counts)
    weights = np.where(counts > 0, counts.sum() / (occurring * np.maximum(counts, 1)), 1.0)
    return tuple(weights.tolist())


def _count_pixels(dataset: LabelledImages | DrawnSamples) -> NDArray[np.int64]:
    """Count the pixels of each class in the masks, or in one draw for each index."""
    classes = dataset.classes
    counts = torch.zeros(len(classes), dtype=torch.int64)
    for index in range(len(dataset)):
        if isinstance(dataset, DrawnSamples):
            mask = dataset.draw(index, torch.Generator().manual_seed(index))["mask"]
        else:
            mask = dataset[index]["mask"]
        labels = mask.as_subclass(torch.Tensor)
        labelled = labels[labels != classes.ignore_index]
        counts += torch.bincount(labelled.flatten(), minlength=len(classes))
    return counts.numpy()
