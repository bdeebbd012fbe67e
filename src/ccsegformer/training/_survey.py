"""Read every sample before training, to leave out bad ones and to know which classes each one shows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from ccsegformer.data.chosen import KeptImages
from ccsegformer.data.dataset import DrawnSamples, LabelledImages
from ccsegformer.errors import DataError, RecipeError
from ccsegformer.files import write_atomically
from ccsegformer.raster.dataset import Scenes
from ccsegformer.training._inputs import tell
from ccsegformer.training._label_counts import count_labels
from ccsegformer.training.recipe import Recipe

SURVEY = "training_samples.json"
LISTED = 20
"""Most samples left out that are listed on stderr."""


class Survey(NamedTuple):
    """What reading every sample once has shown."""

    skipped: dict[str, str]
    """Why samples are left out, by their names."""
    kept: list[int]
    """Indices of the others."""
    labels: list[dict[int, int]]
    """Pixels of each class that occurs, by sample kept."""

    def choose(self, images: LabelledImages) -> LabelledImages:
        """Return the images without those left out."""
        return KeptImages(images, self.kept) if self.skipped else images

    def pixels(self, classes: int) -> NDArray[np.int64]:
        """Return the pixels of each class."""
        total = np.zeros(classes, np.int64)
        for counts in self.labels:
            total[list(counts)] += list(counts.values())
        return total


class _Readings(Dataset[tuple[str, list[int]]]):
    """Samples as the reason why they cannot be read, or "", and the pixels of each class."""

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __getitem__(self, index: int) -> tuple[str, list[int]]:
        try:
            mask = self.images[index]["mask"]
        except DataError as error:
            return str(error), []
        return "", count_labels(mask, len(self.images.classes))[:-1].tolist()


def make_survey(
    recipe: Recipe,
    images: LabelledImages | DrawnSamples,
    arguments: TrainingArguments,
    earlier: Path | None,
    *,
    progress: bool,
) -> Survey | None:
    """Read every sample once if the recipe needs that, each process its share; all get the same result.

    Args:
        recipe: Recipe with `training.skip_bad_files` and `images.rare_classes`.
        images: Images to read.
        arguments: Arguments of the Trainer, which know the processes and the workers.
        earlier: Folder of the run to resume, whose survey is taken if there is one.
        progress: Print what is left out.

    Raises:
        RecipeError: These keys are not for such data.
        DataError: A sample cannot be read and `training.skip_bad_files` is off, or none can be read.
    """
    skip = recipe.training.skip_bad_files
    keys = {"training.skip_bad_files": skip, "images.rare_classes": recipe.images.rare_classes > 0}
    wanted = [key for key, is_set in keys.items() if is_set]
    if not wanted:
        return None
    if isinstance(images, Scenes):
        hint = "; use windows.rare_classes" if recipe.images.rare_classes else ""
        raise RecipeError(f"{wanted[-1]}: is for images, but {recipe.data} holds georeferenced scenes{hint}")
    if isinstance(images, DrawnSamples):
        raise RecipeError(f"{wanted[-1]}: is for images, but {recipe.data} draws its samples at random")
    if earlier is not None and (earlier / SURVEY).is_file():
        return _read_survey(earlier / SURVEY)
    if progress:
        tell(f"{recipe.data}: reading all {len(images)} samples once, for {' and '.join(wanted)}")
    survey = _survey(images, arguments, fail_fast=not skip)
    if not survey.kept:
        first = next(iter(survey.skipped.values()))
        raise DataError(f"{recipe.data}: none of {len(images)} samples can be read; the first: {first}")
    if survey.skipped and progress:
        _list_skipped(str(recipe.data), survey, len(images))
    return survey


def write_survey(survey: Survey, output: Path) -> None:
    """Write a survey for a run that resumes this one."""
    write_atomically(output / SURVEY, json.dumps(survey._asdict(), ensure_ascii=False) + "\n")


def _survey(images: LabelledImages, arguments: TrainingArguments, *, fail_fast: bool) -> Survey:
    own: list[tuple[int, str, dict[int, int]]] = []
    share = range(arguments.process_index, len(images), arguments.world_size)
    for index, (problem, counts) in zip(share, _read(images, share, arguments), strict=False):
        own.append((index, problem, {label: count for label, count in enumerate(counts) if count}))
        if problem and fail_fast:
            break
    found = sorted(gather_object(own), key=lambda reading: reading[0])
    bad = {images.names[index]: problem for index, problem, _ in found if problem}
    if bad and fail_fast:
        raise DataError(next(iter(bad.values())))
    good = [(index, counts) for index, problem, counts in found if not problem]
    return Survey(bad, [index for index, _ in good], [counts for _, counts in good])


def _read(
    images: LabelledImages, share: range, arguments: TrainingArguments
) -> Iterator[tuple[str, list[int]]]:
    yield from DataLoader(
        _Readings(images),
        batch_size=None,
        sampler=share,
        num_workers=arguments.dataloader_num_workers,
        collate_fn=_as_read,
        generator=torch.Generator(),  # not the global one, which the caller may have seeded
    )


def _as_read(reading: Any) -> Any:
    return reading


def _list_skipped(data: str, survey: Survey, count: int) -> None:
    tell(f"{data}: {len(survey.skipped)} of {count} samples cannot be read and are left out:")
    for problem in list(survey.skipped.values())[:LISTED]:
        tell(f"  {problem}")
    if len(survey.skipped) > LISTED:
        tell(f"  and {len(survey.skipped) - LISTED} more, which {SURVEY} lists")


def _read_survey(path: Path) -> Survey:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        labels = [{int(label): count for label, count in counts.items()} for counts in content["labels"]]
        return Survey(content["skipped"], content["kept"], labels)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read: {error}; train again with overwrite") from error
