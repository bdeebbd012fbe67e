"""One training run, from a recipe and a data set to a folder that holds a model."""

import math
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.tensorboard import SummaryWriter
from transformers.integrations import TensorBoardCallback

from ccsegformer.data.labels import Classes
from ccsegformer.data.stream import TrainingStream, collate, plain_data_errors
from ccsegformer.errors import OutputError, RecipeError, TrainingError
from ccsegformer.models import (
    CrissCrossSegformerConfig,
    CrissCrossSegformerForSemanticSegmentation,
    LoadReport,
    load_pretrained,
)
from ccsegformer.sources import open_dataset
from ccsegformer.training._arguments import trainer_arguments
from ccsegformer.training._inputs import Inputs, training_inputs
from ccsegformer.training._loop import SegmentationTrainer
from ccsegformer.training._output import (
    begin_run,
    check_unused,
    find_checkpoint,
    finish_run,
    image_processor,
    nothing_half_begun,
)
from ccsegformer.training._progress import ProgressBar
from ccsegformer.training.freezing import freeze
from ccsegformer.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        model: the trained model, in evaluation mode, on the device it was trained on.
        loss_history: (step, mean loss since the entry before), from the first step to the last.
        seconds: wall-clock time of the training steps, those before a resume included.
        steps: optimizer steps.
        load_report: what was taken over from pretrained weights; None when training began from scratch.
    """

    model: CrissCrossSegformerForSemanticSegmentation
    loss_history: list[tuple[int, float]]
    seconds: float
    steps: int
    load_report: LoadReport | None


def train(
    recipe: Recipe,
    data: str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> TrainingResult:
    """Train a model on the training split of `data` and write it to the folder `output`.

    The folder then holds what `from_pretrained` reads (config.json, model.safetensors,
    preprocessor_config.json), classes.json, recipe.yaml, training_log.json, the last two checkpoints and
    TensorBoard's logs/. The model itself appears only at the end. Under torchrun or accelerate launch every
    process calls this, and the result is that of one process up to rounding.

    Args:
        recipe: what to train and how.
        data: a folder (see `open_dataset`) or "procedural".
        output: a folder that holds no other run, unless `resume` or `overwrite`.
        resume: go on from the last checkpoint in `output`; the weights become those of an unbroken run.
        overwrite: remove the run that `output` holds.
        progress: whether to show steps, loss and remaining time on stderr.

    Raises:
        DataError: the data cannot be used.
        RecipeError: the recipe does not fit the pretrained weights, the number of processes or the
            device, or differs from that of the run to be resumed.
        CheckpointError: the pretrained weights cannot be loaded.
        OutputError: `output` holds another run, has none to resume, or cannot be written.
        TrainingError: the loss is no longer finite, nothing is left to train, or memory ran out.
    """
    output = Path(output)
    recipe = recipe.model_copy(update={"data": str(data)})
    dataset = open_dataset(data, "training")
    inputs = training_inputs(recipe, dataset, progress=progress)
    global_batch = recipe.training.batch_size * recipe.training.accumulation
    steps = _count_steps(recipe, len(inputs.samples))
    with _own_randomness(recipe.training.seed), _quiet_transformers(), ExitStack() as stack:
        arguments = trainer_arguments(recipe, output, steps)
        is_main = arguments.process_index == 0
        checkpoint = find_checkpoint(output, recipe, dataset.classes) if resume else None
        if is_main and not resume:
            check_unused(output, overwrite)
        model, report = build_model(recipe, dataset.classes, inputs)
        freeze(model, recipe.training.freeze, report.new_attention if report else None)
        if is_main and not resume:
            stack.enter_context(nothing_half_begun(output))
            begin_run(output, recipe, dataset.classes)
        writer = stack.enter_context(_tensorboard(output, checkpoint))
        bar = ProgressBar("training")
        trainer = SegmentationTrainer(
            model=model,
            args=arguments,
            train_dataset=TrainingStream(
                inputs.samples,
                recipe.transforms,
                seed=recipe.training.seed,
                length=steps * global_batch,
                statistics=inputs.statistics,
            ),
            data_collator=partial(collate, ignore_index=dataset.classes.ignore_index),
            processing_class=image_processor(model.config),
            callbacks=[TensorBoardCallback(writer)] + [bar] * progress,
            classes=dataset.classes,
            optimization=recipe.optimizer,
            epoch_length=len(inputs.samples) / global_batch,
        )
        del model.config.use_cache  # the Trainer's, for models that generate
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
        log = {
            "steps": steps,
            "seconds": round(trainer.seconds(), 3),
            "images": len(inputs.samples),
            "global_batch": global_batch,
            "processes": arguments.world_size,
            "device": str(arguments.device),
            "loss": history,
        }
        trained = _finish(trainer, output, log)
    return TrainingResult(trained, history, trainer.seconds(), steps, report)


def build_model(
    recipe: Recipe, classes: Classes, inputs: Inputs
) -> tuple[CrissCrossSegformerForSemanticSegmentation, LoadReport | None]:
    """The recipe's model for classes and bands, from scratch (drawn from torch's generator) or pretrained.

    Its weights are float32.

    Raises:
        RecipeError: `model.size` is not that of the pretrained weights, or a value does not suit the model.
        CheckpointError: the pretrained weights cannot be loaded.
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
    }
    try:
        config = CrissCrossSegformerConfig.mit(wanted.size, **overrides)
    except ValueError as error:
        raise RecipeError(f"model: {error}") from error
    if wanted.pretrained is None:
        return CrissCrossSegformerForSemanticSegmentation(config), None
    # In half precision most of a training step would be rounded away, so float32 whatever the file holds.
    model, report = load_pretrained(wanted.pretrained, rgb_bands=inputs.rgb, dtype=torch.float32, **overrides)
    for key in ("hidden_sizes", "depths"):
        found, expected = list(getattr(model.config, key)), list(getattr(config, key))
        if found != expected:
            raise RecipeError(
                f"model.size: {wanted.size} has {key} {expected}, but {wanted.pretrained} has {found}"
            )
    return model, report


def _count_steps(recipe: Recipe, images: int) -> int:
    training = recipe.training
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None
    # Rounded first: 0.1 * 30 is a little more than 3.
    return math.ceil(round(training.epochs * images / (training.batch_size * training.accumulation), 6))


@contextmanager
def _tensorboard(output: Path, checkpoint: Path | None) -> Iterator[SummaryWriter]:
    """A writer of logs, whose thread has ended when a failed run's files are removed."""
    step = int(checkpoint.name.rpartition("-")[2]) + 1 if checkpoint else None
    writer = SummaryWriter(output / "logs", purge_step=step)
    try:
        yield writer
    finally:
        with suppress(OSError):  # a finished run has closed it; what failed a run has been said
            writer.close()


def _finish(
    trainer: SegmentationTrainer, output: Path, log: dict[str, object]
) -> CrissCrossSegformerForSemanticSegmentation:
    """Write the model once; every process gets it whole, in evaluation mode and without a wrapper."""
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if trainer.is_fsdp_enabled:  # a part in each process, and in classes of FSDP's own
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
def _own_randomness(seed: int) -> Iterator[None]:
    """Seed the global generators, which initialisation and dropout draw from, and put them back after."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and warnings off the screen, and a remark on speed by distributed training."""
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
