"""The scores of one model, in the terminal."""

from rich.console import Console
from rich.table import Table

from ccsegformer.evaluation.evaluate import Evaluation
from ccsegformer.report.table import number


def print_scores(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print each class, the worst IoU first, and then the scores of the whole set."""
    metrics = evaluation.metrics
    table = Table(header_style="bold")
    table.add_column("class")
    for column in ("IoU", "accuracy", "pixels"):
        table.add_column(column, justify="right")
    present = {name: row for name, row in metrics.per_class.items() if row["iou"] is not None}
    for name, row in sorted(present.items(), key=lambda item: item[1]["iou"] or 0):
        table.add_row(name, number(row["iou"]), number(row["accuracy"]), f"{row['pixels']:,}")
    console = console or Console()
    console.print(table)
    absent = len(metrics.per_class) - len(present)
    if absent:
        console.print(f"{absent} classes occur neither in truth nor in prediction", highlight=False)
    console.print(
        f"mean IoU {number(metrics.mean_iou)} over {evaluation.images} images "
        f"(devkit {number(metrics.devkit_mean_iou)}), mean accuracy {number(metrics.mean_accuracy)}, "
        f"pixel accuracy {number(metrics.pixel_accuracy)}",
        highlight=False,
    )
