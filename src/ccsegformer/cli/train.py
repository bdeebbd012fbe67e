"""`ccsegformer train`."""

from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import (
    ClassesOption,
    DataBandsOption,
    DataOption,
    ImageColumnOption,
    LabelColumnOption,
    LabelLayerOption,
    MaskColumnOption,
    OverwriteOption,
    RecipeArgument,
    SetOption,
    data_or_usage_error,
)


def train(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Option(help="Folder for the model and its run.", show_default=False)],
    data: DataOption = None,
    image_column: ImageColumnOption = None,
    mask_column: MaskColumnOption = None,
    classes: ClassesOption = None,
    label_layer: LabelLayerOption = None,
    label_column: LabelColumnOption = None,
    bands: DataBandsOption = None,
    set_: SetOption = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Start from the weights of MODEL, with its network and a new schedule.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in OUTPUT.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Train a model from a recipe.

    [bold]Examples[/bold]

      ccsegformer train recipes/report.yaml --data DIR --output runs/report

      ccsegformer train recipes/report.yaml --data DIR --output runs/short --set training.epochs=2

      ccsegformer train recipes/report.yaml --data DIR --output runs/report --resume

      ccsegformer train recipes/report.yaml --data DIR --output runs/again --init runs/report

      torchrun --nproc-per-node 2 -m ccsegformer train recipes/report.yaml --data DIR --output runs/report
    """
    from accelerate import PartialState

    from ccsegformer.training.recipe import load_recipe
    from ccsegformer.training.trainer import train as run

    loaded = load_recipe(recipe, set_ or [])
    chosen = data_or_usage_error(
        data,
        loaded.data,
        image=image_column,
        mask=mask_column,
        classes=classes,
        layer=label_layer,
        column=label_column,
        bands=bands,
    )
    run(
        loaded,
        chosen,
        output,
        init=init,
        resume=resume,
        overwrite=overwrite,
    )
    process = PartialState()
    if process.is_main_process:
        typer.echo(f"{output}: trained")
    process.destroy_process_group()
