"""Count the labels that a run reads, stop where they teach nothing, and say what they lack."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ccsegformer.data.labels import Classes, describe_one_class, list_names
from ccsegformer.data.stream import TrainingSample, TrainingStream, collate
from ccsegformer.errors import DataError
from ccsegformer.files import write_atomically

COUNTS_FILE = "label_counts.json"
ENOUGH_SAMPLES = 1000
"""Samples after which a run with at most one labelled class stops, if an epoch has more."""
HIGH_IGNORED_SHARE = 0.5
"""Share of ignored pixels from which it is said."""


class CountedSample(TrainingSample):
    """Input of a training step, with the labels of its masks before augmentation."""

    label_counts: Tensor  # int64 ([B,] K + 1): pixels by class, then ignored ones


class CountedStream(TrainingStream):
    """Training stream that also counts the labels of every mask as it is read."""

    def __getitem__(self, index: int) -> CountedSample:
        """Read, count, augment and normalise sample `index`."""
        sample = self.read(index)
        counts = count_labels(sample["mask"], len(self.dataset.classes))
        return {**self.augment(index, sample), "label_counts": counts}


def collate_counted(samples: Sequence[CountedSample], ignore_index: int) -> CountedSample:
    """Stack samples as `collate` does, with their counts."""
    counts = torch.stack([sample["label_counts"] for sample in samples])
    return {**collate(samples, ignore_index), "label_counts": counts}


def count_labels(mask: Tensor, classes: int) -> Tensor:
    """Return the pixels of each class, then all others: int64 (classes + 1)."""
    labels = mask.as_subclass(Tensor).flatten().int()
    labels = torch.where((labels >= 0) & (labels < classes), labels, classes)
    return torch.bincount(labels, minlength=classes + 1)


class LabelCounts(TrainerCallback):
    """Labels that a run has read so far, in all processes.

    The run stops if at most one class is labelled in the first epoch, or in the first 1000 samples of a
    longer one. Classes that an epoch never shows, and a high ignored share, are printed on stderr.

    Args:
        data: Name of the data for messages.
        classes: Classes of the data.
        epoch: Samples in an epoch.
        accelerator: Joins the processes; set before training.

    Raises:
        DataError: At most one class is labelled.
    """

    accelerator: Accelerator

    def __init__(self, data: str, classes: Classes, epoch: int) -> None:
        self.data, self.classes, self.epoch = data, classes, epoch
        # Pixels by class, ignored ones, samples: before resuming in all processes, then in this one.
        self._before = torch.zeros(len(classes) + 2, dtype=torch.int64)
        self._here = torch.zeros_like(self._before)
        self._told: set[str] = set()

    def add(self, counts: Tensor) -> None:
        """Add the counts (B, K + 1) of a micro-batch, on any device and without waiting for it."""
        total = torch.cat([counts.sum(dim=0), counts.new_tensor([len(counts)])])
        self._here = self._here.to(total.device) + total

    def record(self) -> dict[str, Any]:
        """Return the counts of all processes, for JSON. Every process must call this."""
        here = self.accelerator.reduce(self._here.to(self.accelerator.device), reduction="sum")
        *pixels, ignored, samples = (self._before + here.cpu()).tolist()
        names = self.classes.names
        return {
            "samples": samples,
            "pixels": dict(zip(names, pixels, strict=True)),
            "ignored_pixels": ignored,
            "classes_in_no_mask": [name for name, count in zip(names, pixels, strict=True) if not count],
        }

    def restore(self, checkpoint: Path) -> None:
        """Go on from the counts of a checkpoint; one of an earlier version has none."""
        if (checkpoint / COUNTS_FILE).is_file():
            saved = json.loads((checkpoint / COUNTS_FILE).read_text(encoding="utf-8"))
            counts = [*saved["pixels"].values(), saved["ignored_pixels"], saved["samples"]]
            self._before = torch.tensor(counts, dtype=torch.int64)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Find the steps after which the counts are judged: with enough samples, and the last."""
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        enough = {-(-samples // batch) for samples in (self.epoch, min(self.epoch, ENOUGH_SAMPLES))}
        self._due = {*enough, state.max_steps}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Judge the counts where that is due."""
        if state.global_step in self._due:
            self._judge(self.record())

    def _judge(self, found: dict[str, Any]) -> None:
        pixels, ignored, samples = list(found["pixels"].values()), found["ignored_pixels"], found["samples"]
        masks = "the only training mask" if samples == 1 else f"the first {samples} training masks"
        if problem := describe_one_class(pixels, ignored, self.classes, masks):
            if samples >= min(self.epoch, ENOUGH_SAMPLES) or not any(pixels):
                raise DataError(f"{self.data}: {problem}")
            self._tell("one class", problem)
            return
        if samples >= self.epoch and (absent := found["classes_in_no_mask"]):
            occur = "class occurs" if len(absent) == 1 else "classes occur"
            self._tell(
                "absent",
                f"{len(absent)} {occur} in none of {samples} training masks, so cannot be learned: "
                f"{list_names(absent)}",
            )
        share = ignored / (ignored + sum(pixels))
        if share >= HIGH_IGNORED_SHARE:
            self._tell(
                "ignored",
                f"{share:.0%} of the pixels in {samples} training masks are ignored "
                f"(label {self.classes.ignore_index}, or no data)",
            )

    def _tell(self, topic: str, line: str) -> None:
        """Print a line on stderr in the first process, once for each topic."""
        if topic not in self._told and os.environ.get("RANK", "0") == "0":
            print(f"{self.data}: {line}", file=sys.stderr)
        self._told.add(topic)


def write_label_counts(record: dict[str, Any], checkpoint: Path) -> None:
    """Write counts for `LabelCounts.restore`."""
    write_atomically(checkpoint / COUNTS_FILE, json.dumps(record, ensure_ascii=False) + "\n")
