"""Print the scores of one model in the terminal."""

from rich.console import Console
from rich.table import Table

from ccsegformer.data.labels import list_names
from ccsegformer.evaluation.evaluate import Evaluation
from ccsegformer.evaluation.shortfalls import rank_shortfalls
from ccsegformer.report.table import number, span


def print_scores(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print the classes, largest shortfall first, then the protocol and the data set's scores."""
    metrics = evaluation.metrics
    names = list(metrics.per_class)
    losses = rank_shortfalls(evaluation.confusion, names)
    table = Table(header_style="bold")
    table.add_column("class")
    for column in ("shortfall", "IoU", "accuracy", "pixels"):
        table.add_column(column, justify="right")
    table.add_column("most confused with")
    for of in losses:
        scores = [number(score) for score in (of.shortfall, of.iou, of.accuracy)]
        table.add_row(of.name, *scores, f"{of.pixels:,}", of.confused_with or "–")
    console = console or Console()
    console.print(table)
    scored = {of.name for of in losses}
    absent = [name for name in names if name not in scored]
    if absent:
        occur = "class occurs" if len(absent) == 1 else "classes occur"
        console.print(
            f"{len(absent)} {occur} in neither truth nor prediction: {list_names(absent)}",
            highlight=False,
            markup=False,
        )
    console.print(
        f"protocol {evaluation.protocol['name']}: {evaluation.protocol['summary']}", highlight=False
    )
    protocol = evaluation.protocol
    console.print(
        f"engine {protocol['engine']} on {protocol['device']} in {protocol['precision']}", highlight=False
    )
    interval = evaluation.mean_iou_interval
    scores = [
        f"mean IoU {number(metrics.mean_iou)}{f' (95% interval {span(interval)})' if interval else ''} "
        f"over {evaluation.images} images "
        f"(devkit {number(metrics.devkit_mean_iou)}), mean accuracy {number(metrics.mean_accuracy)}, "
        f"pixel accuracy {number(metrics.pixel_accuracy)}",
        f"mean of per-image mIoU {number(evaluation.mean_image_iou)} (not comparable with mean IoU)",
    ]
    for line in scores[::-1] if evaluation.protocol["score"] == "mean_image_iou" else scores:
        console.print(line, highlight=False)
