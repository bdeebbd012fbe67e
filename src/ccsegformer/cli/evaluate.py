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

      torchrun --nproc-per-node 2 -m ccsegformer evaluate runs/report --data DIR
    """
    import torch
    from accelerate import PartialState

    from ccsegformer.data.sources import open_dataset
    from ccsegformer.evaluation.evaluate import evaluate as score
    from ccsegformer.evaluation.evaluate import write_metrics
    from ccsegformer.inference.predictor import load_model
    from ccsegformer.report.scores import print_scores

    process = PartialState(cpu=not torch.cuda.is_available())
    dataset = open_dataset(data, split)
    loaded, _ = load_model(model, device=process.device)
    evaluation = score(loaded, dataset, progress=True)
    if process.is_main_process:
        if output is not None:
            write_metrics(evaluation, output / "metrics.json")
        print_scores(evaluation)
    process.destroy_process_group()
