"""Run training: from a recipe and a data set to a model folder."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.tensorboard import SummaryWriter
from transformers.integrations import TensorBoardCallback

from ccsegformer.data.chosen import BalancedImages
from ccsegformer.data.dataset import DrawnSamples, LabelledImages
from ccsegformer.data.labels import Classes
from ccsegformer.data.objects import describe_object
from ccsegformer.data.stream import plain_data_errors
from ccsegformer.errors import DataError, OutputError, RecipeError, TrainingError
from ccsegformer.models import (
    CrissCrossSegformerConfig,
    CrissCrossSegformerForSemanticSegmentation,
    LoadSummary,
    load_pretrained,
)
from ccsegformer.sources import resolve_dataset
from ccsegformer.training._arguments import trainer_arguments
from ccsegformer.training._inputs import Inputs, tell, training_inputs
from ccsegformer.training._label_counts import CountedStream, LabelCounts, collate_counted
from ccsegformer.training._loop import SCORE, SegmentationTrainer
from ccsegformer.training._loss import segmentation_loss
from ccsegformer.training._output import (
    begin_run,
    check_unused,
    find_checkpoint,
    finish_run,
    image_processor,
    nothing_half_begun,
)
from ccsegformer.training._output import (
    can_resume as can_resume,
)
from ccsegformer.training._progress import ProgressBar
from ccsegformer.training._randomness import own_randomness
from ccsegformer.training._restart import restart_recipe
from ccsegformer.training._survey import Survey, make_survey
from ccsegformer.training._trackers import make_trackers, running
from ccsegformer.training.freezing import freeze
from ccsegformer.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingResult:
    """Result of a run.

    Attributes:
        model: Trained model, in evaluation mode, on the training device.
        loss_history: (step, mean loss since the previous entry), from the first step to the last.
        validation_history: (step, mean IoU) of each validation.
        seconds: Wall-clock time of the training steps, including those before resuming.
        steps: Optimizer steps that were taken.
        load_summary: Summary of the loaded pretrained weights; None for training from scratch.
    """

    model: CrissCrossSegformerForSemanticSegmentation
    loss_history: list[tuple[int, float]]
    validation_history: list[tuple[int, float]]
    seconds: float
    steps: int
    load_summary: LoadSummary | None


def train(
    recipe: Recipe,
    dataset: Any,
    output: str | Path,
    *,
    classes: Classes | Sequence[str] | None = None,
    validation: Any = None,
    init: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> TrainingResult:
    """Train a model on a data set and write it to the folder `output`.

    The folder then holds the files for `from_pretrained` (config.json, model.safetensors,
    preprocessor_config.json), classes.json, recipe.yaml, origins.json, training_log.json, the last two
    checkpoints and TensorBoard's logs/, unless the recipe's `training.report_to` leaves it out. The weights
    appear only at the end. Under torchrun or accelerate launch, every process calls this function, and the
    result equals that of one process up to rounding.

    Args:
        recipe: Model, data handling and optimization.
        dataset: A name, whose training split is opened by `open_dataset`, or a data set object (see
            `as_dataset`).
        classes: Classes of a data set object, or their names; by default its `classes`.
        validation: Data set to score on if the recipe says so, a name or an object; by default the split
            "validation" of a named `dataset`.
        init: Model for a warm restart: instead of `model.pretrained`, and with its own size, attention,
            recurrence, projection and LePE, which the recipe may leave out.
        output: Folder without another run, unless `resume` or `overwrite` is set.
        resume: Continue from the last checkpoint in `output`; the weights become those of an unbroken run.
        overwrite: Delete the run in `output` first.
        progress: Show steps, loss and remaining time on stderr.

    Raises:
        DataError: The data cannot be used, or at most one class is labelled in them.
        RecipeError: The recipe does not fit the pretrained weights, the network of `init`, the number of
            processes or the device, or differs from that of the run to resume.
        CheckpointError: The pretrained weights cannot be loaded.
        OutputError: `output` holds another run or none to resume, or cannot be written.
        MissingExtraError: The package of a tracker is not installed.
        TrainingError: The loss is not finite, nothing is left to train, GPU memory ran out, or a tracker
            cannot begin.
    """
    output = Path(output)
    if init is not None:
        recipe = restart_recipe(recipe, init)
    trackers = make_trackers(recipe.training.report_to)
    images = resolve_dataset(dataset, "training", classes)
    named = isinstance(dataset, str | Path)
    scored = _validation_images(recipe, dataset if named else None, validation, images.classes)
    recipe = recipe.model_copy(update={"data": str(dataset) if named else describe_object(images)})
    global_batch = recipe.training.batch_size * recipe.training.accumulation
    with quiet_transformers(), ExitStack() as stack:
        arguments = trainer_arguments(recipe, output, 1)  # joins the processes; the steps are known below
        is_main = arguments.process_index == 0
        checkpoint = find_checkpoint(output, recipe, images) if resume else None
        if is_main and not resume:
            check_unused(output, overwrite)
        earlier = output if resume else None
        survey = make_survey(recipe, images, arguments, earlier, progress=progress)
        inputs = _chosen_inputs(recipe, images, survey, progress=progress)
        steps = _count_steps(recipe, len(inputs.samples))
        if progress and recipe.schedule.warmup_steps >= steps:
            tell(
                f"schedule.warmup_steps: {recipe.schedule.warmup_steps} is not below the run's {steps} "
                f"step{'s' * (steps > 1)}, so the learning rate never reaches its peak"
            )
        validate_every = _validation_steps(recipe, len(inputs.samples) / global_batch)
        arguments = trainer_arguments(recipe, output, steps, validate_every)
        stack.enter_context(own_randomness(recipe.training.seed))
        loss = segmentation_loss(recipe, images, survey, progress=progress)
        model, summary = build_model(recipe, images.classes, inputs)
        freeze(model, recipe.training.freeze, summary.new_attention if summary else None)
        if is_main and not resume:
            stack.enter_context(nothing_half_begun(output))
            begin_run(output, recipe, images, survey)
        # Only the first process logs: another's file could be deleted while the first clears the folder.
        has_board = is_main and "tensorboard" in recipe.training.report_to
        writers = [stack.enter_context(_tensorboard(output, checkpoint))] if has_board else []
        bar = ProgressBar("training")
        labels = LabelCounts(str(recipe.data), images.classes, len(inputs.samples))
        if checkpoint:
            labels.restore(checkpoint)
        trainer = SegmentationTrainer(
            model=model,
            args=arguments,
            train_dataset=CountedStream(
                inputs.samples,
                recipe.transforms,
                seed=recipe.training.seed,
                length=steps * global_batch,
                statistics=inputs.statistics,
            ),
            data_collator=partial(collate_counted, ignore_index=images.classes.ignore_index),
            processing_class=image_processor(model.config),
            callbacks=[*map(TensorBoardCallback, writers), *trackers.values(), *[bar] * progress],
            classes=images.classes,
            optimization=recipe.optimizer,
            epoch_length=len(inputs.samples) / global_batch,
            label_counts=labels,
            segmentation_loss=loss,
            eval_dataset=scored,
            validation=recipe.validation,
        )
        if scored is not None and trainer.is_fsdp_enabled:
            raise RecipeError("validation: is not possible under FSDP; evaluate the checkpoints instead")
        if checkpoint is not None:
            trainer.resume_best(checkpoint)
        del model.config.use_cache  # set by the Trainer, for generative models
        stack.enter_context(running(trackers, trainer))
        try:
            with plain_data_errors():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of GPU memory at training.batch_size {recipe.training.batch_size}: lower it and raise "
                "training.accumulation, or crop to a smaller size"
            ) from error
        except OSError as error:
            raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error
        finally:
            bar.close()
        history = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
        scores = [(entry["step"], entry[SCORE]) for entry in trainer.state.log_history if SCORE in entry]
        log: dict[str, object] = {
            "steps": trainer.state.global_step,
            "seconds": round(trainer.seconds(), 3),
            "images": len(inputs.samples),
            "global_batch": global_batch,
            "processes": arguments.world_size,
            "device": str(arguments.device),
            "loss": history,
            "labels": labels.record(),
        }
        if loss.class_weights is not None:
            log["class_weights"] = dict(zip(images.classes.names, loss.class_weights, strict=True))
        if recipe.training.skip_bad_files and survey is not None:
            log["skipped_files"] = survey.skipped
        if scores:
            log["validation"] = scores
        if trainer.best:
            log["best"] = max(scores, key=lambda entry: (entry[1], -entry[0]))
        trained = _finish(trainer, output, log)
    taken = trainer.state.global_step
    return TrainingResult(trained, history, scores, trainer.seconds(), taken, summary)


def build_model(
    recipe: Recipe, classes: Classes, inputs: Inputs
) -> tuple[CrissCrossSegformerForSemanticSegmentation, LoadSummary | None]:
    """Build the recipe's model for these classes and bands, with pretrained or random float32 weights.

    Random weights are drawn from torch's global generator.

    Raises:
        RecipeError: `model.size` differs from the pretrained weights, or a value does not suit the model.
        CheckpointError: The pretrained weights cannot be loaded.
    """
    wanted = recipe.model
    overrides = {
        "attention": wanted.attention,
        "recurrence": wanted.recurrence,
        "projection": wanted.projection,
        "lepe": wanted.lepe,
        "id2label": classes.id2label,
        "label2id": {name: label for label, name in classes.id2label.items()},
        "semantic_loss_ignore_index": classes.ignore_index,
        "num_channels": inputs.bands,
        "band_means": inputs.statistics and inputs.statistics.means,
        "band_stds": inputs.statistics and inputs.statistics.stds,
        "scene_bands": inputs.scene_bands,
    }
    try:
        config = CrissCrossSegformerConfig.mit(wanted.size, **overrides)
    except ValueError as error:
        raise RecipeError(f"model: {error}") from error
    if wanted.pretrained is None:
        return CrissCrossSegformerForSemanticSegmentation(config), None
    # Always float32: in half precision most of each update would be rounded away.
    model, summary = load_pretrained(
        wanted.pretrained, rgb_bands=inputs.rgb, dtype=torch.float32, **overrides
    )
    for key in ("hidden_sizes", "depths"):
        found, expected = list(getattr(model.config, key)), list(getattr(config, key))
        if found != expected:
            raise RecipeError(
                f"model.size: {wanted.size} has {key} {expected}, but {wanted.pretrained} has {found}"
            )
    return model, summary


def _chosen_inputs(
    recipe: Recipe, images: LabelledImages | DrawnSamples, survey: Survey | None, *, progress: bool
) -> Inputs:
    """Prepare the samples to train on, without those left out and balanced by class, as the recipe says."""
    if survey is None or isinstance(images, DrawnSamples):
        return training_inputs(recipe, images, progress=progress)
    kept = survey.choose(images)
    inputs = training_inputs(recipe, kept, progress=progress)
    if not recipe.images.rare_classes:
        return inputs
    return inputs._replace(samples=BalancedImages(kept, recipe.images.rare_classes, survey.labels))


def _validation_images(
    recipe: Recipe, data: str | Path | None, validation: Any, classes: Classes
) -> LabelledImages | None:
    """Open the data set to score on during training, or return None if the recipe does not ask for it."""
    if not recipe.validation.is_scheduled:
        if validation is not None:
            raise RecipeError("validation: set validation.steps or validation.epochs to use validation=")
        return None
    validation = data if validation is None else validation
    if validation is None:
        raise RecipeError("validation: pass train(..., validation=...), a data set object to score on")
    images = resolve_dataset(validation, "validation", default=classes)
    if isinstance(images, DrawnSamples):
        raise DataError(f"{type(images).__name__}: draws its samples at random; validate on fixed images")
    if images.classes.names != classes.names:
        raise DataError(
            f"validation: its classes {', '.join(images.classes.names)} are not those of the training data, "
            f"{', '.join(classes.names)}"
        )
    return images


def _validation_steps(recipe: Recipe, epoch: float) -> int | None:
    """Return the steps between validations, for an epoch of so many steps."""
    wanted = recipe.validation
    return max(1, round(wanted.epochs * epoch)) if wanted.epochs is not None else wanted.steps


def _count_steps(recipe: Recipe, images: int) -> int:
    training = recipe.training
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None
    # Round first: 0.1 * 30 is slightly more than 3.
    return math.ceil(round(training.epochs * images / (training.batch_size * training.accumulation), 6))


@contextmanager
def _tensorboard(output: Path, checkpoint: Path | None) -> Iterator[SummaryWriter]:
    """Yield a writer of logs and stop its thread before the files of a failed run are deleted."""
    step = int(checkpoint.name.rpartition("-")[2]) + 1 if checkpoint else None
    writer = SummaryWriter(output / "logs", purge_step=step)
    try:
        yield writer
    finally:
        with suppress(OSError):  # the error that ended the run is already reported
            writer.close()


def _finish(
    trainer: SegmentationTrainer, output: Path, log: dict[str, object]
) -> CrissCrossSegformerForSemanticSegmentation:
    """Write the model in one process, and return it in all: complete, unwrapped, in evaluation mode."""
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if trainer.best:
        model.load_state_dict(trainer.best)
    if trainer.is_fsdp_enabled:  # each process holds a part, in FSDP's classes
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        model = CrissCrossSegformerForSemanticSegmentation(model.config)
        if trainer.args.should_save:
            model.load_state_dict(weights)
    if trainer.args.should_save:
        finish_run(output, model, log)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_fsdp_enabled:
        model = load_pretrained(str(output), config=model.config)[0].to(trainer.args.device)
    return model.eval()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings, and a performance warning of DDP."""
    logging = transformers.utils.logging
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
