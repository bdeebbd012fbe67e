"""`ccsegformer compare`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import (
    AttentionOption,
    ClassesOption,
    DataBandsOption,
    DataOption,
    ImageColumnOption,
    LabelColumnOption,
    LabelLayerOption,
    MaskColumnOption,
    OpenOption,
    OverwriteOption,
    ProtocolOption,
    RecipeArgument,
    SetOption,
    attentions_or_usage_error,
    data_or_usage_error,
)


def compare(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Option(help="Folder for the comparison.", show_default=False)],
    data: DataOption = None,
    image_column: ImageColumnOption = None,
    mask_column: MaskColumnOption = None,
    classes: ClassesOption = None,
    label_layer: LabelLayerOption = None,
    label_column: LabelColumnOption = None,
    bands: DataBandsOption = None,
    attention: AttentionOption = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each attention, with consecutive seeds from the recipe's on.")
    ] = 1,
    protocol: ProtocolOption = None,
    set_: SetOption = None,
    overwrite: OverwriteOption = False,
    show: OpenOption = False,
) -> None:
    """Train a recipe with each attention and with none, and compare the scores.

    Writes results.json and report.html. Repeat the command to continue an interrupted comparison.

    [bold]Examples[/bold]

      ccsegformer compare recipes/from_scratch.yaml --data DIR --output runs/compared

      ccsegformer compare recipes/from_scratch.yaml --data DIR --output runs/compared --seeds 3
    """
    from rich.console import Console

    from ccsegformer.cli._open import open_result
    from ccsegformer.config.protocol import DEFAULT, load_protocol
    from ccsegformer.lab.comparison import compare as run
    from ccsegformer.report.table import print_table
    from ccsegformer.training.recipe import load_recipe

    attentions = attentions_or_usage_error(attention)
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
    results = run(
        loaded,
        chosen,
        output,
        attentions=attentions,
        seeds=seeds,
        protocol=load_protocol(protocol) if protocol else DEFAULT,
        overwrite=overwrite,
        command=shlex.join(["ccsegformer", *sys.argv[1:]]),
    )
    print_table(results, Console())
    typer.echo(f"{output / 'report.html'}")
    if show:
        open_result(output / "report.html")
