"""`ccsegformer evaluate`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import (
    DATA_HELP,
    ClassesOption,
    DataBandsOption,
    EngineOption,
    ImageColumnOption,
    LabelColumnOption,
    LabelLayerOption,
    MaskColumnOption,
    ModelArgument,
    OpenOption,
    PrecisionOption,
    ProtocolOption,
)


def evaluate(
    model: ModelArgument,
    data: Annotated[str, typer.Option(help=DATA_HELP, show_default=False)],
    image_column: ImageColumnOption = None,
    mask_column: MaskColumnOption = None,
    classes: ClassesOption = None,
    label_layer: LabelLayerOption = None,
    label_column: LabelColumnOption = None,
    bands: DataBandsOption = None,
    split: Annotated[str, typer.Option(help="Split to score on.")] = "validation",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for metrics.json, confusion.csv and evaluation.html. Default: nothing is written.",
            show_default=False,
        ),
    ] = None,
    protocol: ProtocolOption = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    show: OpenOption = False,
) -> None:
    """Score a model at each image's original resolution, and report where it fails.

    [bold]Examples[/bold]

      ccsegformer evaluate runs/report --data DIR

      ccsegformer evaluate nvidia/segformer-b0-finetuned-ade-512-512 --data scene_parse_150

      ccsegformer evaluate runs/report --data scene_parse_150 --protocol report --output scores

      torchrun --nproc-per-node 2 -m ccsegformer evaluate runs/report --data DIR
    """
    import torch
    import torch.distributed as dist

    from ccsegformer.cli._open import open_result
    from ccsegformer.config.protocol import DEFAULT, load_protocol, with_precision
    from ccsegformer.evaluation.evaluate import evaluate as score
    from ccsegformer.labelling.loading import load_engine
    from ccsegformer.report.scores import print_scores
    from ccsegformer.sources import open_dataset, with_options

    if show and output is None:
        raise typer.BadParameter("shows the report: name its folder with --output", param_hint="--open")
    if output is not None:  # a missing package is noticed before the scoring
        from ccsegformer.report.evaluation import write_evaluation
    chosen = load_protocol(protocol) if protocol else DEFAULT
    if precision is not None:
        chosen = with_precision(chosen, precision)
    distributed = "RANK" in os.environ  # set by torchrun
    if distributed:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group()
    columns = {"image": image_column, "mask": mask_column, "layer": label_layer, "column": label_column}
    data = with_options(data, classes=classes, bands=bands, **columns)
    dataset = open_dataset(data, split)
    opened, _ = load_engine(model, engine, chosen.precision, classes=dataset.classes)
    if opened.scene_bands and getattr(dataset, "chosen_bands", ()) is None:  # scenes
        trained = with_options(data, bands=",".join(map(str, opened.scene_bands)))
        dataset = open_dataset(trained, split)
    evaluation = score(opened, dataset, protocol=chosen, progress=True)
    if not distributed or dist.get_rank() == 0:
        print_scores(evaluation)
        if output is not None:
            names = {"model": model, "data": data, "split": split}
            command = ["ccsegformer", *sys.argv[1:]]
            page = write_evaluation(output, evaluation, opened, dataset, chosen, **names, command=command)
            typer.echo(f"{page}")
            if show:
                open_result(page)
    if distributed:
        dist.destroy_process_group()
