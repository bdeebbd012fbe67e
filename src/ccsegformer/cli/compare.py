"""`ccsegformer compare`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import (
    ClassList,
    Data,
    ImageColumn,
    MaskColumn,
    Overwrite,
    Protocol,
    Recipe,
    Set,
    attentions_or_usage_error,
    data_or_usage_error,
)


def compare(
    recipe: Recipe,
    output: Annotated[Path, typer.Option(help="The folder of the comparison.", show_default=False)],
    data: Data = None,
    image_column: ImageColumn = None,
    mask_column: MaskColumn = None,
    classes: ClassList = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as efficient or criss_cross; may be repeated. Default: all. No attention, the "
            "control, is always added.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs with each attention, from the recipe's seed on.")
    ] = 1,
    protocol: Protocol = None,
    set_: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Train the same recipe with each attention and without, and say which is better.

    Writes results.json and report.html. A comparison that was broken off goes on where it was.

    [bold]Examples[/bold]

      ccsegformer compare recipes/small.yaml --data DIR --output runs/compared

      ccsegformer compare recipes/small.yaml --data DIR --output runs/compared --seeds 3
    """
    from rich.console import Console

    from ccsegformer.config.protocol import DEFAULT, load_protocol
    from ccsegformer.lab.comparison import compare as run
    from ccsegformer.report.table import print_table
    from ccsegformer.training.recipe import load_recipe

    attentions = attentions_or_usage_error(attention)
    loaded = load_recipe(recipe, set_ or [])
    results = run(
        loaded,
        data_or_usage_error(data, loaded.data, image_column, mask_column, classes),
        output,
        attentions=attentions,
        seeds=seeds,
        protocol=load_protocol(protocol) if protocol else DEFAULT,
        overwrite=overwrite,
        command=shlex.join(["ccsegformer", *sys.argv[1:]]),
    )
    print_table(results, Console())
    typer.echo(f"{output / 'report.html'}")
