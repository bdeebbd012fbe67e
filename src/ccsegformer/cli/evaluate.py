"""`ccsegformer evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import Model


def evaluate(
    model: Model,
    data: Annotated[
        str, typer.Option(help="A folder in ADE20K's layout, or 'procedural'.", show_default=False)
    ],
    split: Annotated[str, typer.Option(help="The split to score on.")] = "validation",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for metrics.json; without it, nothing is written.", show_default=False),
    ] = None,
) -> None:
    """Score a model: mIoU of the whole set, at each image's original resolution.

    [bold]Examples[/bold]

      ccsegformer evaluate runs/report --data DIR

      ccsegformer evaluate nvidia/segformer-b0-finetuned-ade-512-512 --data DIR --output scores
    """
    from ccsegformer.data.sources import open_dataset
    from ccsegformer.evaluation import evaluate as score
    from ccsegformer.inference.predictor import load_model

    dataset = open_dataset(data, split)
    loaded, classes = load_model(model)
    score.check_classes(classes, dataset.classes)
    evaluation = score.evaluate(loaded, dataset, progress=True)
    if output is not None:
        score.write_metrics(evaluation, output / "metrics.json")
    typer.echo(score.summary(evaluation))
