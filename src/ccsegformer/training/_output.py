"""The output folder of a training run: check, begin, resume and finish."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel, SegformerImageProcessor

from ccsegformer.data.dataset import DrawnSamples, LabelledImages
from ccsegformer.data.labels import read_classes, write_classes
from ccsegformer.data.pixels import IMAGE_MEAN, IMAGE_STD
from ccsegformer.errors import OutputError, RecipeError
from ccsegformer.files import write_atomically
from ccsegformer.models import CrissCrossSegformerConfig
from ccsegformer.models.origins import ORIGINS, weight_origins, write_origins
from ccsegformer.publishing.card import CARD, is_own_card
from ccsegformer.training._data_record import RECORD, check_same_data, record_data, write_data_record
from ccsegformer.training._survey import SURVEY, Survey, write_survey
from ccsegformer.training.recipe import Recipe, differing_keys, load_recipe, save_recipe

WEIGHTS = "model.safetensors"
# Files of a run and of its evaluation, which `overwrite` may delete.
RUN_FILES = (
    "recipe.yaml",
    "classes.json",
    ORIGINS,
    RECORD,
    SURVEY,
    "config.json",
    "preprocessor_config.json",
    WEIGHTS,
    "training_log.json",
    "metrics.json",
    "confusion.csv",
    "evaluation.html",
    "checkpoint-*",
    "logs",
)
# A resumed run may change these, because the weights do not depend on them.
FREE_KEYS = {"training.save_steps", "training.workers", "training.report_to"}


def check_unused(output: Path, overwrite: bool) -> None:
    """Check that a new run may use `output`.

    Raises:
        OutputError: It is a file, or holds a run and `overwrite` is off.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is not a folder")
    found = _run_files(output)
    if found and not overwrite:
        raise OutputError(
            f"{output}: holds another run ({found[0].name}); resume it, overwrite it or choose another folder"
        )


def begin_run(
    output: Path, recipe: Recipe, dataset: LabelledImages | DrawnSamples, survey: Survey | None = None
) -> None:
    """Delete an earlier run and write the files that resuming this one needs.

    Raises:
        OutputError: The folder cannot be cleared or written.
    """
    origins = weight_origins(recipe.model.pretrained)  # which may lie in this folder
    try:
        for path in _run_files(output):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise OutputError(f"{output}: cannot be cleared: {error.strerror or error}") from error
    save_recipe(recipe, output / "recipe.yaml")
    write_classes(dataset.classes, output / "classes.json")
    write_origins(output, origins)
    write_data_record(output, record_data(dataset))
    if survey is not None:
        write_survey(survey, output)


@contextmanager
def nothing_half_begun(output: Path) -> Iterator[None]:
    """Delete the files of a run that fails before its first complete checkpoint."""
    try:
        yield
    except BaseException:
        if not can_resume(output):
            for path in _run_files(output):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            with suppress(OSError):  # the folder holds other files, or does not exist
                output.rmdir()
        raise


def can_resume(output: str | Path) -> bool:
    """Return whether `output` holds a complete checkpoint; a launcher that starts again must know."""
    return bool(complete_checkpoints(Path(output)))


def find_checkpoint(output: Path, recipe: Recipe, dataset: LabelledImages | DrawnSamples) -> Path:
    """Find the last complete checkpoint in `output`, of a run with this recipe and these data.

    Raises:
        OutputError: No checkpoint, or different classes.
        RecipeError: A different recipe; the message names the keys that differ.
        DataError: Other samples or changed files.
    """
    if not (output / "recipe.yaml").is_file():
        raise OutputError(f"{output}: holds no run to resume; train without resume first")
    differing = [
        key for key in differing_keys(load_recipe(output / "recipe.yaml"), recipe) if key not in FREE_KEYS
    ]
    if differing:
        raise RecipeError(
            f"{output / 'recipe.yaml'}: the run to resume had another {', another '.join(differing)}"
        )
    if read_classes(output / "classes.json") != dataset.classes:
        raise OutputError(f"{output / 'classes.json'}: the run to resume has other classes than the data")
    check_same_data(output, record_data(dataset))
    complete = complete_checkpoints(output)
    if not complete:
        raise OutputError(
            f"{output}: holds no complete checkpoint to resume from; train again with overwrite"
        )
    return max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def finish_run(output: Path, model: PreTrainedModel, log: dict[str, object]) -> None:
    """Write the trained model and its log. Weights come last, so a folder with weights is complete.

    Raises:
        OutputError: The files cannot be written; then the folder holds no weights.
    """
    aside = output / ".model"
    try:
        model.save_pretrained(aside)
        image_processor(model.config).save_pretrained(aside)
        write_atomically(output / "training_log.json", json.dumps(log) + "\n")
        for path in sorted(aside.iterdir(), key=lambda path: path.name == WEIGHTS):
            path.replace(output / path.name)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{output / WEIGHTS}: cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def image_processor(config: CrissCrossSegformerConfig) -> SegformerImageProcessor:
    """Return the image processor: the normalisation used in training, without resizing."""
    own = config.band_means is not None
    mean, std = (config.band_means, config.band_stds) if own else (IMAGE_MEAN, IMAGE_STD)
    return SegformerImageProcessor(
        do_resize=False,
        do_reduce_labels=False,
        do_rescale=not own,
        image_mean=list(mean or ()),
        image_std=list(std or ()),
    )


def reason(error: Exception) -> str:
    """Return why writing failed, in one line."""
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def _run_files(output: Path) -> list[Path]:
    found = [path for pattern in RUN_FILES for path in sorted(output.glob(pattern))]
    return [*found, *[path for path in [output / CARD] if is_own_card(path)]]


def complete_checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints in a folder that were written to the end."""
    return [path for path in output.glob("checkpoint-*") if _is_complete(path)]


def _is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete; the Trainer writes its state last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return checkpoint.name.removeprefix("checkpoint-").isdecimal()
