"""Progress display of a training run."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressBar(TrainerCallback):
    """Show steps, loss and remaining time: a bar on a terminal, otherwise a line for every tenth of the run.

    Args:
        title: Short description of the run.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.loss = ""
        self.score = ""
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin at the current step, which is not 0 in a resumed run."""
        self.began, self.first = time.monotonic(), state.global_step
        self.task = self.bar.add_task(self.title, total=state.max_steps, completed=self.first, loss="")
        if self.console.is_terminal and state.is_world_process_zero:
            self.bar.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the loss, averaged since the last log entry, and the score of the last validation."""
        if logs and "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}"
        if logs and "eval_mean_iou" in logs:
            self.score = f"mean IoU {logs['eval_mean_iou']:.3f}"

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Advance by a step."""
        step, steps = state.global_step, state.max_steps
        self.bar.update(self.task, completed=step, loss=self._figures())
        tenth = step * 10 // steps > (step - 1) * 10 // steps
        if tenth and state.is_world_process_zero and not self.console.is_terminal:
            seconds = (time.monotonic() - self.began) / (step - self.first) * (steps - step)
            minutes, seconds = divmod(round(seconds), 60)
            parts = (f"{self.title}: step {step}/{steps}", self._figures(), f"{minutes}:{seconds:02} left")
            self.console.print(", ".join(part for part in parts if part))

    def _figures(self) -> str:
        return ", ".join(figure for figure in (self.loss, self.score) if figure)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Show the score of a validation."""
        self.bar.update(self.task, loss=self._figures())
        if state.is_world_process_zero and not self.console.is_terminal:
            self.console.print(f"{self.title}: validated after step {state.global_step}, {self.score}")

    def close(self) -> None:
        """Stop the bar, however the run ended."""
        if self.bar.live.is_started:
            self.bar.stop()
