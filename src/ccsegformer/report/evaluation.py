"""Write the report of an evaluation to files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ccsegformer.config.protocol import EvaluationProtocol
from ccsegformer.data.dataset import LabelledImages
from ccsegformer.evaluation.evaluate import Evaluation, describe_scored, write_confusion, write_metrics
from ccsegformer.files import write_atomically
from ccsegformer.report.failures import render_failures, worst_images

if TYPE_CHECKING:
    from ccsegformer.labelling.engine import Engine


def write_evaluation(
    folder: Path,
    evaluation: Evaluation,
    engine: "Engine",
    dataset: LabelledImages,
    protocol: EvaluationProtocol,
    *,
    model: str,
    data: str,
    split: str,
    command: Sequence[str],
) -> Path:
    """Write metrics.json, confusion.csv and evaluation.html to a folder, and return the path of the page.

    Args:
        folder: Folder to write to, which is created if missing.
        evaluation: Scores to report.
        engine: Engine that labels the worst images again.
        dataset: Data set that was scored.
        protocol: Protocol of the evaluation.
        model: Name of the model, for the page.
        data: Name of the data set, for the page.
        split: Name of the split, for the page.
        command: Command line that repeats the evaluation, for the page.
    """
    page = render_failures(
        evaluation,
        dataset.classes,
        worst_images(engine, dataset, evaluation, protocol),
        model=model,
        data=data,
        split=split,
        command=command,
    )
    write_metrics(evaluation, folder / "metrics.json", describe_scored(model, data, split))
    write_confusion(evaluation, folder / "confusion.csv")
    write_atomically(folder / "evaluation.html", page)
    return folder / "evaluation.html"
