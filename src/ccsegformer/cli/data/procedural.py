"""`ccsegformer data procedural`."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def procedural(
    output: Annotated[Path, typer.Option(help="New folder for the scenes.", show_default=False)],
    size: Annotated[int, typer.Option(help="Width and height, in pixels of 25 cm.")] = 2048,
    training: Annotated[int, typer.Option(help="Number of training scenes.")] = 8,
    validation: Annotated[int, typer.Option(help="Number of validation scenes.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the random scenes.")] = 0,
) -> None:
    """Generate aerial scenes as GeoTIFFs with masks: farmland whose classes need context from far away.

    A scene of 2048 pixels takes about 10 seconds, one of 4096 half a minute and 3 GB of memory, and one of
    8192 three minutes and 9 GB.

    [bold]Examples[/bold]

      ccsegformer data procedural --output DIR

      ccsegformer data procedural --output DIR --size 4096 --training 4 --validation 1
    """
    from ccsegformer.data.procedural.geotiff import write_scenes

    write_scenes(
        output, training=training, validation=validation, size=size, seed=seed, progress=sys.stderr.isatty()
    )
    typer.echo(f"{output}: {training} training and {validation} validation scenes of {size} x {size} pixels")
