"""`ccsegformer train`."""

from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import (
    ClassList,
    Data,
    ImageColumn,
    MaskColumn,
    Overwrite,
    Recipe,
    Set,
    data_or_usage_error,
)


def train(
    recipe: Recipe,
    output: Annotated[
        Path, typer.Option(help="The folder of the model, and of its run.", show_default=False)
    ],
    data: Data = None,
    image_column: ImageColumn = None,
    mask_column: MaskColumn = None,
    classes: ClassList = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in OUTPUT.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model by a recipe.

    [bold]Examples[/bold]

      ccsegformer train recipes/report.yaml --data DIR --output runs/report

      ccsegformer train recipes/report.yaml --data DIR --output runs/short --set training.epochs=2

      ccsegformer train recipes/report.yaml --data DIR --output runs/report --resume

      torchrun --nproc-per-node 2 -m ccsegformer train recipes/report.yaml --data DIR --output runs/report
    """
    from accelerate import PartialState

    from ccsegformer.training.recipe import load_recipe
    from ccsegformer.training.trainer import train as run

    loaded = load_recipe(recipe, set_ or [])
    run(
        loaded,
        data_or_usage_error(data, loaded.data, image_column, mask_column, classes),
        output,
        resume=resume,
        overwrite=overwrite,
    )
    process = PartialState()
    if process.is_main_process:
        typer.echo(f"{output}: trained")
    process.destroy_process_group()
