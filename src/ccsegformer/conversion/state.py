"""The output folder of a conversion: begin, continue, and finish whole or not at all."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import OutputError
from ccsegformer.files import write_atomically
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.origins import weight_origins, write_origins
from ccsegformer.training._output import WEIGHTS, image_processor, reason

STATE = ".conversion"
SETTINGS = "settings.json"
START = "start.safetensors"
STAGES = "stages.json"
RECORD_FILE = "conversion.json"


@dataclass(frozen=True)
class ConversionSettings:
    """All that the weights depend on, and so what a continued conversion may not change."""

    source: str
    attention: tuple[str, ...]
    images: str
    files: int
    size: int
    steps: int
    batch: int
    learning_rate: float
    layer_steps: int
    teacher_window: int | None
    seed: int


@contextmanager
def conversion_state(output: Path, settings: ConversionSettings, resume: bool) -> Iterator[Path]:
    """Yield the folder for the state of a conversion, inside the output folder.

    If the conversion fails before its first weights are kept, nothing is left.

    Raises:
        OutputError: The output exists; with `resume`, it holds no conversion, or one with other settings.
    """
    state = output / STATE
    if resume:
        _check_same(output, settings)
    else:
        _create_state(output, settings)
    try:
        yield state
    except BaseException:
        if not (state / START).is_file():
            shutil.rmtree(state, ignore_errors=True)
            with suppress(OSError):  # it does not exist
                output.rmdir()
        raise


def keep_start(
    state: Path, student: CrissCrossSegformerForSemanticSegmentation, stages: dict[str, Any]
) -> None:
    """Keep the weights from which distillation starts, and the figures so far.

    Raises:
        OutputError: They cannot be written.
    """
    aside = state / f"{START}.partial"
    write_atomically(state / STAGES, json.dumps(stages))
    try:
        save_file({name: weight.contiguous() for name, weight in student.state_dict().items()}, aside)
        aside.replace(state / START)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{state}: cannot be written: {reason(error)}") from error


def load_start(state: Path, student: CrissCrossSegformerForSemanticSegmentation) -> dict[str, Any] | None:
    """Load what `keep_start` kept into the student, and return the figures; None if there is nothing."""
    if not (state / START).is_file():
        return None
    student.load_state_dict(load_file(state / START))
    stages: dict[str, Any] = json.loads((state / STAGES).read_text())
    return stages


def finish(
    output: Path,
    student: CrissCrossSegformerForSemanticSegmentation,
    classes: Classes,
    record: dict[str, Any],
) -> None:
    """Write the model folder and remove the state. Weights come last: a folder that has them is complete.

    Raises:
        OutputError: The files cannot be written; then the folder holds no weights.
    """
    aside = output / STATE / "model"
    try:
        student.save_pretrained(aside)
        image_processor(student.config).save_pretrained(aside)
        write_classes(classes, aside / "classes.json")
        write_origins(aside, weight_origins(record["source"]))
        write_atomically(aside / RECORD_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        for path in sorted(aside.iterdir(), key=lambda path: path.name == WEIGHTS):
            path.replace(output / path.name)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{output / WEIGHTS}: cannot be written: {reason(error)}") from error
    shutil.rmtree(output / STATE, ignore_errors=True)


def _create_state(output: Path, settings: ConversionSettings) -> None:
    if (output / STATE).is_dir():
        raise OutputError(f"{output}: holds a conversion that has not finished; continue it with --resume")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise OutputError(f"{output}: exists; choose another folder")
    write_atomically(output / STATE / SETTINGS, json.dumps(asdict(settings)))


def _check_same(output: Path, settings: ConversionSettings) -> None:
    path = output / STATE / SETTINGS
    if not path.is_file():
        raise OutputError(f"{output}: holds no conversion to resume; leave out --resume")
    before, now = json.loads(path.read_text()), json.loads(json.dumps(asdict(settings)))
    for key, value in now.items():
        if before.get(key) != value:
            raise OutputError(
                f"{output}: the conversion to resume has another {key}: {_worded(before.get(key))}, "
                f"not {_worded(value)}"
            )


def _worded(value: Any) -> str:
    return ",".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
