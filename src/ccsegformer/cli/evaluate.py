"""`ccsegformer evaluate`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import ClassList, Engine, ImageColumn, MaskColumn, Model, Precision, Protocol


def evaluate(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            help="A folder in ADE20K's layout, of georeferenced scenes or of parquet files, "
            "hf://datasets/ORG/NAME, scene_parse_150 once fetched, or 'procedural'.",
            show_default=False,
        ),
    ],
    image_column: ImageColumn = None,
    mask_column: MaskColumn = None,
    classes: ClassList = None,
    split: Annotated[str, typer.Option(help="The split to score on.")] = "validation",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for metrics.json, confusion.csv and evaluation.html; without it, none is written.",
            show_default=False,
        ),
    ] = None,
    protocol: Protocol = None,
    engine: Engine = None,
    precision: Precision = None,
) -> None:
    """Score a model, at each image's original resolution, and show where it fails.

    [bold]Examples[/bold]

      ccsegformer evaluate runs/report --data DIR

      ccsegformer evaluate nvidia/segformer-b0-finetuned-ade-512-512 --data scene_parse_150

      ccsegformer evaluate runs/report --data scene_parse_150 --protocol report --output scores

      torchrun --nproc-per-node 2 -m ccsegformer evaluate runs/report --data DIR
    """
    import torch
    import torch.distributed as dist

    from ccsegformer.config.protocol import DEFAULT, load_protocol, with_precision
    from ccsegformer.evaluation.evaluate import evaluate as score
    from ccsegformer.evaluation.evaluate import write_confusion, write_metrics
    from ccsegformer.files import write_atomically
    from ccsegformer.labelling.loading import load_engine
    from ccsegformer.report.scores import print_scores
    from ccsegformer.sources import open_dataset, with_options

    if output is not None:
        from ccsegformer.report.failures import render_failures, worst_images
    chosen = load_protocol(protocol) if protocol else DEFAULT
    if precision is not None:
        chosen = with_precision(chosen, precision)
    distributed = "RANK" in os.environ  # set by torchrun
    if distributed:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group()
    data = with_options(data, image=image_column, mask=mask_column, classes=classes)
    dataset = open_dataset(data, split)
    opened, _ = load_engine(model, engine, chosen.precision, classes=dataset.classes)  # type: ignore[arg-type]
    evaluation = score(opened, dataset, protocol=chosen, progress=True)
    if not distributed or dist.get_rank() == 0:
        print_scores(evaluation)
        if output is not None:
            page = render_failures(
                evaluation,
                dataset.classes,
                worst_images(opened, dataset, evaluation, chosen),
                model=model,
                data=data,
                split=split,
                command=["ccsegformer", *sys.argv[1:]],
            )
            write_metrics(evaluation, output / "metrics.json")
            write_confusion(evaluation, output / "confusion.csv")
            write_atomically(output / "evaluation.html", page)
            typer.echo(f"{output / 'evaluation.html'}")
    if distributed:
        dist.destroy_process_group()
