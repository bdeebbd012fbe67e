"""transformers' Trainer, with results that do not depend on the number of processes or on resuming."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, TrainerControl

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import OutputError, TrainingError
from ccsegformer.evaluation.evaluate import evaluate as score
from ccsegformer.models.losses import SegmentationLoss
from ccsegformer.publishing.card import write_card
from ccsegformer.training._label_counts import LabelCounts, write_label_counts
from ccsegformer.training._output import reason
from ccsegformer.training._parameters import parameter_groups
from ccsegformer.training._randomness import own_randomness
from ccsegformer.training.recipe import OptimizerSection, ValidationSection

SCORE = "eval_mean_iou"
"""Key of the mean IoU in the log; TensorBoard shows it as eval/mean_iou."""
BEST = "best.safetensors"


class SegmentationTrainer(Trainer):
    """Trainer that takes micro-batches from a stream of samples in a fixed order.

    Of W processes, the one with rank r takes the micro-batches r, r + W, r + 2 W and so on of a step. Before
    micro-batch n of the run, torch's generator is seeded by (seed, n), so dropout and stochastic depth do not
    depend on W or on resuming. Running statistics of batch norms are merged as if one process had seen all
    micro-batches in order. The loss of a step is the mean over its micro-batches.

    Raises:
        TrainingError: The loss or the gradient is not finite.
        OutputError: A checkpoint cannot be written.
    """

    control: TrainerControl
    optimizer: Any  # set by the Trainer through `create_optimizer`

    def __init__(
        self,
        *,
        classes: Classes,
        optimization: OptimizerSection,
        epoch_length: float,
        segmentation_loss: SegmentationLoss,
        validation: ValidationSection,
        label_counts: LabelCounts | None = None,
        **kwargs: Any,
    ) -> None:
        """Create the trainer.

        Args:
            classes: Classes to write with each checkpoint.
            optimization: Settings that group the parameters.
            epoch_length: Steps per epoch of the data set.
            segmentation_loss: Loss to minimise.
            validation: What to do with the scores on `eval_dataset`.
            label_counts: Counts to add those of a `CountedStream` to.
            kwargs: Arguments of transformers' Trainer.
        """
        super().__init__(**kwargs)
        self.classes = classes
        self.optimization = optimization
        self.epoch_length = epoch_length
        self.segmentation_loss = segmentation_loss
        self.validation = validation
        self.best: dict[str, Tensor] = {}  # weights with the highest mean IoU, if they are to be kept
        self._micro_batch = 0
        self._started: float | None = None
        self.remove_callback(PrinterCallback)
        self.label_counts, self._saved_counts = label_counts, dict[str, Any]()
        if label_counts is not None:
            label_counts.accelerator = self.accelerator
            self.add_callback(label_counts)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Run one micro-batch forward and backward."""
        if self._started is None:  # the first step of a fresh or resumed run
            self._started = time.monotonic() - self.seconds()
            self._micro_batch = self.state.global_step * self.args.gradient_accumulation_steps
        number = self._micro_batch * self.args.world_size + self.args.process_index
        self._micro_batch += 1
        torch.manual_seed(
            int(np.random.SeedSequence([self.args.seed, number]).generate_state(1, np.uint64)[0])
        )
        if self.label_counts is not None:
            self.label_counts.add(inputs.pop("label_counts"))
        with _merged_running_statistics(model, self.args.process_index, self.args.world_size):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise self._diverged("loss", loss)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss of a micro-batch: the model's own cross entropy, or the run's other loss."""
        if self.segmentation_loss == SegmentationLoss():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = self.segmentation_loss(outputs.logits, inputs["labels"], self.classes.ignore_index)
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        # In fp16 the loss scaler expects infinite gradients and skips those steps.
        if not self.args.fp16 and norm is not None and not np.isfinite(float(norm)):
            raise self._diverged("gradient's norm", norm)
        return norm

    def _diverged(self, what: str, value: Any) -> TrainingError:
        step = self.state.global_step + 1
        return TrainingError(
            f"step {step}: the {what} is {float(value)}; lower optimizer.learning_rate or check "
            f"training.precision (checkpoints hold weights from before step {step})"
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the Trainer's optimizer over the recipe's parameter groups."""
        if self.optimizer is None:
            model = self.model if model is None else model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = kind(parameter_groups(model, self.optimization), **settings)
        return self.optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the epoch of the data set and the seconds of training so far."""
        self.state.epoch = self.state.global_step / self.epoch_length
        super().log({**logs, "seconds": self.seconds()}, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the model on `eval_dataset`, log the mean IoU, keep the best weights, and stop if it is time.

        All processes score a share of the images and get the same result. The generators are left as they
        were.
        """
        with own_randomness(self.args.seed):
            workers = self.args.dataloader_num_workers
            mean = score(self.model, self.eval_dataset, engine="torch", workers=workers).metrics.mean_iou
        self.log({SCORE: mean})
        since_best = validations_since_best(self.state.log_history)
        if self.validation.keep_best and since_best == 0:
            weights = self.model.state_dict().items()
            self.best = {name: weight.detach().cpu().clone().contiguous() for name, weight in weights}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {SCORE: mean})
        if self.validation.patience is not None and since_best >= self.validation.patience:
            self.control.should_training_stop = True
            self.control.should_save = False  # a resumed run must come here again, not start beyond
        return {SCORE: mean}

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write the run's model card, which the Trainer's `push_to_hub` uploads, in the first process."""
        if self.is_world_process_zero():
            write_card(self.args.output_dir, self.hub_model_id)

    def resume_best(self, checkpoint: Path) -> None:
        """Read the best weights so far from the checkpoint of the run to resume."""
        if self.validation.keep_best and (checkpoint / BEST).exists():
            self.best = load_file(checkpoint / BEST)

    def seconds(self) -> float:
        """Return the wall-clock time of training so far, including time before resuming."""
        if self._started is None:
            return max((entry.get("seconds", 0.0) for entry in self.state.log_history), default=0.0)
        return time.monotonic() - self._started

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.label_counts is not None:
            self._saved_counts = self.label_counts.record()
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save's own errors are RuntimeErrors
            shutil.rmtree(folder, ignore_errors=True)
            raise OutputError(f"{folder}: cannot be written: {reason(error)}") from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # make the checkpoint a model folder, without pickled arguments
            folder = Path(output_dir or self.args.output_dir)
            write_classes(self.classes, folder / "classes.json")
            if self._saved_counts:
                write_label_counts(self._saved_counts, folder)
            (folder / "training_args.bin").unlink()
            if self.best:
                save_file(self.best, folder / BEST)


def validations_since_best(history: list[dict[str, float]]) -> int:
    """Return how many validations followed the first one with the highest mean IoU."""
    scores = [entry[SCORE] for entry in history if SCORE in entry]
    return len(scores) - 1 - scores.index(max(scores))


@contextmanager
def _merged_running_statistics(model: nn.Module, rank: int, world_size: int) -> Iterator[None]:
    """Merge the batch norm statistics of all processes as if one process had run them in order of rank.

    A batch norm with momentum m updates its statistics r to (1 - m) r + m s. After W updates they are
    (1 - m)^W r plus the sum of (1 - m)^(W - 1 - rank) m s.
    """
    if world_size == 1:
        yield
        return
    norms: list[Any] = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [torch.stack([norm.running_mean, norm.running_var]) for norm in norms]
    yield
    for norm, start in zip(norms, before, strict=True):
        keep = 1 - norm.momentum
        seen = torch.stack([norm.running_mean, norm.running_var]) - keep * start
        merged = keep ** (world_size - 1 - rank) * seen
        dist.all_reduce(merged)
        merged += keep**world_size * start
        norm.running_mean.copy_(merged[0])
        norm.running_var.copy_(merged[1])
        norm.num_batches_tracked += world_size - 1
