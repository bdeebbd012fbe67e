"""Experiment trackers, by the names of transformers' Trainer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ccsegformer.errors import MissingExtraError, TrainingError


def make_trackers(names: Sequence[str]) -> dict[str, TrainerCallback]:
    """Return the Trainer's callback of each tracker; TensorBoard has a writer of its own.

    Raises:
        MissingExtraError: The package of a tracker is not installed.
    """
    trackers = {}
    for name in names:
        if name != "tensorboard":
            try:
                trackers[name] = INTEGRATION_TO_CALLBACK[name]()
            except RuntimeError as error:  # the callback's own check
                raise MissingExtraError(
                    f"training.report_to: {name} is not installed: pip install {name}"
                ) from error
            except ImportError as error:
                raise MissingExtraError(
                    f"training.report_to: {name} cannot be imported: {' '.join(str(error).split())}"
                ) from error
    return trackers


@contextmanager
def running(trackers: dict[str, TrainerCallback], trainer: Trainer) -> Iterator[None]:
    """Begin the trackers' runs before the training, so that an error costs nothing, and end them after it.

    A run of Weights & Biases or MLflow that the caller has begun goes on.

    Raises:
        TrainingError: A tracker cannot begin, for instance because nobody is logged in.
    """
    ends = [end for name, callback in trackers.items() if (end := _end_of(name, callback))]
    for name, callback in trackers.items():
        try:
            callback.setup(trainer.args, trainer.state, trainer.model)
        except Exception as error:  # each package has its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TrainingError(f"training.report_to: {name} cannot begin: {reason}") from error
    try:
        yield
    finally:
        for end in ends:
            end()


def _end_of(name: str, callback: Any) -> Any:
    """Return what ends a run that none but this training has begun; the Trainer itself ends Trackio's."""
    if name == "wandb" and callback._wandb.run is None:
        return callback._wandb.finish
    if name == "mlflow" and callback._ml_flow.active_run() is None:
        return callback._ml_flow.end_run
    return None
