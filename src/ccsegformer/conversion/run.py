"""Convert a trained SegFormer: every stage of the method, and what each was worth."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track
from torch import Tensor

from ccsegformer.conversion.agreement import Agreement, HeldBack
from ccsegformer.conversion.distillation import distill
from ccsegformer.conversion.fold import fold
from ccsegformer.conversion.images import Division, batches, crops, divide_images
from ccsegformer.conversion.layerwise import match_layers
from ccsegformer.conversion.ridge import attention_errors, fit_ridge, keep_better
from ccsegformer.conversion.scores import check_labelled, compare_scores, mean_iou_on
from ccsegformer.conversion.state import ConversionSettings, conversion_state, finish, keep_start, load_start
from ccsegformer.conversion.student import attention_blocks, build_student
from ccsegformer.data.pixels import MINIMUM_SIDE
from ccsegformer.errors import DataError
from ccsegformer.labelling.loading import load_model
from ccsegformer.labelling.preprocess import Preprocessing, preprocessing_of
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from ccsegformer.training._output import complete_checkpoints
from ccsegformer.training._progress import ProgressBar
from ccsegformer.training._randomness import own_randomness
from ccsegformer.training.trainer import quiet_transformers

ATTENTION = ("criss_cross", "criss_cross", "efficient", "efficient")
CALIBRATION = 64
"""Crops that fold and ridge regression measure."""
CHOICE = 16
"""Crops by which the better of both is chosen for each block."""
LAYER_LEARNING_RATE = 1e-3
"""Learning rate of the match of single layers."""


class Conversion(NamedTuple):
    """Result of a conversion.

    Attributes:
        model: Converted model, in evaluation mode.
        agreement: Its agreement with the teacher on the images held back.
        record: Contents of conversion.json: settings, images, the figures after each stage, and the stage
            whose weights were kept.
    """

    model: CrissCrossSegformerForSemanticSegmentation
    agreement: Agreement
    record: dict[str, Any]


def convert(
    checkpoint: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    attention: str | Sequence[str] = ATTENTION,
    data: str | Path | None = None,
    size: int = 512,
    steps: int = 400,
    batch: int = 2,
    learning_rate: float = 3e-4,
    layer_steps: int = 100,
    teacher_window: int | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: bool = False,
) -> Conversion:
    """Turn a trained SegFormer with efficient attention into one with criss-cross attention.

    The new attention starts from the old weights (`fold`), is fitted to the old one's outputs in closed form
    (`fit_ridge`) and by gradient (`match_layers`), and the whole network then learns the teacher's class
    probabilities (`distill`). If the images held back agree better without that last stage, it is undone. No
    labels are used.

    Args:
        checkpoint: Trained model: folder, or name on the hub.
        images: Folder of 20 images at least, of the kind that the model will see.
        output: New folder for the model, with conversion.json.
        attention: New attention of all stages, or of each: "criss_cross", or "none" for a control.
        data: Data set on whose validation split both models are scored.
        size: Side of the crops, in pixels, a multiple of 32: the size at which the model will be used.
        steps: Steps of distillation.
        batch: Crops in a step.
        learning_rate: Highest learning rate of distillation.
        layer_steps: Steps of matching single layers.
        teacher_window: Side of windows in which the teacher sees the crops, a multiple of 32, where `size` is
            larger than its own training crops; None for whole crops.
        seed: Seed of the images held back and of the crops.
        resume: Continue an interrupted conversion in `output`.
        progress: Show progress and the figures of each stage on stderr.

    Raises:
        CheckpointError: The model cannot be loaded, or has nothing to convert.
        DataError: The images or the data cannot be used, or have other classes than the model.
        OutputError: The output exists, or is not that of a conversion with these settings.
        TrainingError: The loss is not finite.
    """
    _check_sides(size, teacher_window)
    teacher, classes = load_model(checkpoint)
    teacher.float()
    student = build_student(teacher, attention, str(checkpoint))
    preprocessing = preprocessing_of(teacher.config)
    division = divide_images(images, preprocessing, seed)
    if data is not None:
        check_labelled(data, classes, str(checkpoint))
    settings = ConversionSettings(
        source=str(checkpoint),
        attention=student.config.stage_attention,
        images=str(images),
        files=len(division.used) + len(division.held_back),
        size=size,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        layer_steps=layer_steps,
        teacher_window=teacher_window,
        seed=seed,
    )
    with (
        conversion_state(Path(output), settings, resume) as state,
        own_randomness(seed),
        quiet_transformers(),
    ):
        run = _Work(teacher, student, settings, division, preprocessing, data, progress)
        stages = load_start(state, student)
        if stages is None:
            stages = run.start()
            keep_start(state, student, stages)
        loss = run.distill(state)
        stages["distilled"] = run.measure("distilled")
        kept = run.keep_better_end(state, stages)
        record: dict[str, Any] = {
            **asdict(settings),
            "held_back": [path.name for path in division.held_back],
            "stages": stages,
            "kept": kept,
            "loss": loss,
        }
        if data is not None:
            record["scores"] = compare_scores(teacher, student, data, progress=progress)
        if hasattr(student.config, "use_cache"):
            del student.config.use_cache  # set by the Trainer, for generative models
        finish(Path(output), student, classes, record)
    assert run.agreement is not None
    return Conversion(student, run.agreement, record)


class _Work:
    """The stages of a conversion, with progress."""

    def __init__(
        self,
        teacher: CrissCrossSegformerForSemanticSegmentation,
        student: CrissCrossSegformerForSemanticSegmentation,
        settings: ConversionSettings,
        division: Division,
        preprocessing: Preprocessing,
        data: str | Path | None,
        progress: bool,
    ) -> None:
        self.teacher, self.student, self.settings = teacher, student, settings
        self.preprocessing, self.data, self.progress = preprocessing, data, progress
        self.console = Console(stderr=True, highlight=False)
        self.agreement: Agreement | None = None
        self.began = time.monotonic()
        place = len(division.used) // 5
        self.used, self.choice_files, self.fit_files = (
            division.used,
            division.used[:place],
            division.used[place:],
        )
        self.choice = self._batches("comparing", self.choice_files, CHOICE)
        self.held_back = HeldBack(teacher, division.held_back, settings.teacher_window)

    def start(self) -> dict[str, Any]:
        """Run the stages before distillation, and return their figures."""
        stages = {"copied": self.measure("copied")}
        if not attention_blocks(self.teacher, self.student):
            return stages
        images = self._batches("measuring", self.fit_files, CALIBRATION)
        for name, stage in (("folded", self._fold), ("ridge", self._ridge), ("layerwise", self._layers)):
            stage(images)
            stages[name] = self.measure(name)
        return stages

    def distill(self, state: Path) -> list[tuple[int, float]]:
        """Distil, from the last checkpoint if there is one, and return (step, loss)."""
        of = self.settings
        stream = self._crops(self.used, of.steps * of.batch, 2)
        bar, done = ProgressBar("distilling"), complete_checkpoints(state)
        try:
            return distill(
                self.teacher,
                self.student,
                stream,
                state,
                batch=of.batch,
                learning_rate=of.learning_rate,
                window=of.teacher_window,
                checkpoint=max(done, key=lambda path: int(path.name.rpartition("-")[2]), default=None),
                seed=of.seed,
                callbacks=[bar] if self.progress else [],
            )
        finally:
            bar.close()

    def keep_better_end(self, state: Path, stages: dict[str, Any]) -> str:
        """Return to the weights before distillation if they agreed better; return the name of the stage kept.

        The images held back decide, so the agreement of the stage kept is optimistic, as a better of two is.
        """
        *_, before, after = stages
        if stages[before]["agreement"]["pixels"] <= stages[after]["agreement"]["pixels"]:
            return after
        load_start(state, self.student)
        self.agreement = self.held_back.compare(self.student)
        if self.progress:
            self.console.print(f"kept: {before}; distillation was too short to improve it")
        return before

    def measure(self, stage: str) -> dict[str, Any]:
        """Return the figures of the student as it is, and print them."""
        agreement = self.agreement = self.held_back.compare(self.student)
        seconds = time.monotonic() - self.began
        if self.progress:
            self.console.print(
                f"{stage}: {agreement.pixels:.1%} of the pixels as the teacher, mean IoU "
                f"{agreement.mean_iou:.3f} ({seconds:.0f} s)"
            )
        figures: dict[str, Any] = {"agreement": agreement._asdict(), "seconds": round(seconds, 1)}
        if attention_blocks(self.teacher, self.student):
            figures["attention_errors"] = attention_errors(self.teacher, self.student, self.choice)
        if self.data is not None:
            figures["mean_iou"] = mean_iou_on(self.student, self.data)
        self.began = time.monotonic()
        return figures

    def _fold(self, images: Iterable[Tensor]) -> None:
        fold(self.teacher, self.student, images)

    def _ridge(self, images: Iterable[Tensor]) -> None:
        fitted = copy.deepcopy(self.student)
        fit_ridge(self.teacher, fitted, images, seed=self.settings.seed)
        keep_better(self.teacher, self.student, fitted, self.choice)

    def _layers(self, _: Iterable[Tensor]) -> None:
        steps, batch = self.settings.layer_steps, self.settings.batch
        images = self._batches("matching layers", self.used, steps * batch, batch, seed=1)
        match_layers(self.teacher, self.student, images, steps=steps, learning_rate=LAYER_LEARNING_RATE)

    def _crops(self, files: Sequence[Path], count: int, seed: int) -> Any:
        return crops(
            files,
            self.preprocessing,
            size=self.settings.size,
            count=count,
            seed=3 * self.settings.seed + seed,
        )

    def _batches(
        self, title: str, files: Sequence[Path], count: int, batch: int = 1, seed: int = 0
    ) -> "_Shown":
        loader = batches(self._crops(files, count, seed), batch)
        shown = self.progress and self.console.is_terminal

        def show() -> Iterator[Tensor]:
            return iter(track(loader, title, disable=not shown, console=self.console, transient=True))

        return _Shown(show)


class _Shown:
    """Batches that show a bar each time they are read."""

    def __init__(self, show: Callable[[], Iterator[Tensor]]) -> None:
        self.show = show

    def __iter__(self) -> Iterator[Tensor]:
        return self.show()


def _check_sides(size: int, window: int | None) -> None:
    for name, value in (("size", size), ("teacher_window", window)):
        if value is not None and (value < MINIMUM_SIDE or value % MINIMUM_SIDE):
            raise DataError(f"{name}: must be a multiple of {MINIMUM_SIDE} pixels, not {value}")
