"""Convert a recipe to the arguments of transformers' Trainer."""

import os
from pathlib import Path

import accelerate  # noqa: F401  # used by TrainingArguments
import torch
from transformers import TrainingArguments

from ccsegformer.errors import RecipeError
from ccsegformer.training.recipe import Recipe


def trainer_arguments(
    recipe: Recipe, output: Path, steps: int, validate_every: int | None = None
) -> TrainingArguments:
    """Return the Trainer's arguments for `steps` optimizer steps in this process and on its device.

    With `validate_every`, it validates after every so many steps and after the last one.

    Raises:
        RecipeError: The device does not support the precision, or the processes cannot share the
            micro-batches equally.
    """
    training, optimizer, schedule = recipe.training, recipe.optimizer, recipe.schedule
    has_cuda = torch.cuda.is_available()
    if training.precision == "fp16" and not has_cuda:
        raise RecipeError("training.precision: fp16 needs a GPU; use bf16 or fp32")
    # transformers' polynomial divides by the number of steps after the warm-up
    is_poly = schedule.name == "poly" and schedule.warmup_steps < steps
    workers = training.workers
    if workers is None:  # on a CPU the model already uses every core
        workers = min(4, os.cpu_count() or 1) if has_cuda else 0
    try:
        arguments = TrainingArguments(
            output_dir=str(output),
            max_steps=steps,
            per_device_train_batch_size=training.batch_size,
            train_sampling_strategy="sequential",  # the stream sets the order
            remove_unused_columns=False,
            optim={"adamw": "adamw_torch", "adafactor": "adafactor"}[optimizer.name],
            learning_rate=optimizer.learning_rate,
            lr_scheduler_type="polynomial" if is_poly else "linear",
            lr_scheduler_kwargs={"lr_end": 0.0, "power": schedule.power} if is_poly else None,
            warmup_steps=schedule.warmup_steps,
            bf16=training.precision == "bf16",
            fp16=training.precision == "fp16",
            # Without this, the Trainer ignores torchrun on machines without a GPU.
            use_cpu=not torch.accelerator.is_available(),
            seed=training.seed,
            logging_steps=max(1, steps // 200),
            logging_first_step=True,
            logging_nan_inf_filter=False,  # a non-finite loss ends the run
            save_steps=training.save_steps,
            save_total_limit=2,
            eval_strategy="no" if validate_every is None else "steps",
            eval_steps=validate_every,
            report_to="none",  # the trackers are given as callbacks
            run_name=output.resolve().name,
            project="ccsegformer",
            disable_tqdm=True,
            log_level="error",
            dataloader_num_workers=workers,
            dataloader_pin_memory=has_cuda,
            ddp_find_unused_parameters=False,
        )
    except ValueError as error:
        raise RecipeError(f"training: {str(error).partition(chr(10))[0]}") from error
    processes = arguments.world_size
    if training.accumulation % processes:
        raise RecipeError(
            f"training.accumulation: {training.accumulation} micro-batches cannot be shared equally by "
            f"{processes} processes; use a multiple of {processes}"
        )
    arguments.gradient_accumulation_steps = training.accumulation // processes
    arguments._n_gpu = min(arguments.n_gpu, 1)  # use several GPUs through torchrun, not DataParallel
    return arguments
