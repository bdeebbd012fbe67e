"""Teach the whole student the teacher's class probabilities.

The loss is the Kullback-Leibler divergence of the probabilities at the logits' own resolution, temperature 1,
over all weights: the last step of RADLADS (Goldstein et al., https://arxiv.org/abs/2505.03005), where LoLCATs
(https://arxiv.org/abs/2410.10254) trains adapters and ViT-AdaLA (https://arxiv.org/abs/2603.16063) features.
"""

from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  # used by TrainingArguments
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ccsegformer.config.protocol import WindowSection
from ccsegformer.conversion.images import stack_pixels
from ccsegformer.data.stream import TrainingStream
from ccsegformer.errors import TrainingError
from ccsegformer.labelling.test_time_augmentation import sliding_windows
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.one_label import with_background

STRIDE = 4
"""Pixels for each logit along a side."""
SAVE_STEPS = 50
"""Steps between checkpoints."""


class Distiller(Trainer):
    """Trainer whose loss is the divergence of a student's class probabilities from a teacher's.

    Both stay in evaluation mode: batch norm keeps the teacher's statistics, and nothing is dropped.

    Args:
        teacher: Model to follow.
        window: Side of the teacher's windows; None for whole images.
        kwargs: Arguments of transformers' Trainer.
    """

    def __init__(self, *, teacher: nn.Module, window: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher, self.window = teacher, window
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the divergence for a batch."""
        model.eval()
        pixels = inputs["pixel_values"]
        target = windowed_logits(self.teacher, pixels, self.window)
        loss = divergence(model(pixel_values=pixels).logits, target)
        if not torch.isfinite(loss):
            step = self.state.global_step + 1
            raise TrainingError(
                f"distillation, step {step}: the loss is {float(loss.detach())}; lower the learning rate"
            )
        return loss


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean over pixels of KL(target || logits), both (batch, K, h, w), in nats."""
    student, teacher = (with_background(of).float().log_softmax(dim=1) for of in (logits, target))
    return kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1).mean()


@torch.no_grad()
def windowed_logits(model: nn.Module, pixels: Tensor, window: int | None) -> Tensor:
    """Return logits (batch, K, h, w), each the mean over the windows that see it.

    Args:
        model: Model that maps pixels to `logits` at a quarter of their size.
        pixels: Normalised pixels (batch, bands, H, W) whose sides are multiples of 32.
        window: Side of a window, a multiple of 32; windows overlap by half. None for the whole image.
    """
    height, width = pixels.shape[2:]
    if window is None or max(height, width) <= window:
        return model(pixel_values=pixels).logits
    section = WindowSection(size=window, stride=window // 64 * 32 or window)
    total, count = None, pixels.new_zeros(height // STRIDE, width // STRIDE)
    for top, bottom in sliding_windows(height, section):
        for left, right in sliding_windows(width, section):
            logits = model(pixel_values=pixels[:, :, top:bottom, left:right]).logits
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *count.shape)
            place = slice(top // STRIDE, bottom // STRIDE), slice(left // STRIDE, right // STRIDE)
            total[:, :, *place] += logits
            count[place] += 1
    assert total is not None, "a side has a window"
    return total / count


def distill(
    teacher: CrissCrossSegformerForSemanticSegmentation,
    student: CrissCrossSegformerForSemanticSegmentation,
    stream: TrainingStream,
    folder: Path,
    *,
    batch: int = 2,
    learning_rate: float = 3e-4,
    window: int | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
    callbacks: list[TrainerCallback] | None = None,
) -> list[tuple[int, float]]:
    """Distil the teacher into the student, in place, and return (step, loss) along the way.

    AdamW with a warm-up over a tenth of the steps and a cosine decay to 0; gradients are clipped to norm 1.

    Args:
        teacher, student: Models on the same device.
        stream: Crops to learn from, see `crops`, each once.
        folder: Folder for checkpoints.
        batch: Crops in a step.
        learning_rate: Highest learning rate.
        window: See `windowed_logits`.
        checkpoint: Checkpoint to continue from.
        seed: Seed of the run.
        callbacks: Callbacks of the Trainer.

    Raises:
        TrainingError: The loss is not finite.
    """
    steps = len(stream) // batch
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        train_sampling_strategy="sequential",  # the stream sets the order
        remove_unused_columns=False,
        optim="adamw_torch",
        learning_rate=learning_rate,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 10,
        use_cpu=teacher.device.type == "cpu",
        seed=seed,
        logging_steps=max(1, steps // 50),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_num_workers=4 if torch.cuda.is_available() else 0,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)
    trainer = Distiller(
        teacher=teacher,
        window=window,
        model=student,
        args=arguments,
        train_dataset=stream,
        data_collator=lambda samples: {"pixel_values": stack_pixels(samples)},
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    student.eval()
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
