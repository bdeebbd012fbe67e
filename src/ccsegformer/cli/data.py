"""`ccsegformer data`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="data",
    help="Fetch or generate data sets.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("scene-parse-150")
def scene_parse_150(
    output: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the set. Default: scene_parse_150 in the user's cache.", show_default=False
        ),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(help="ADEChallengeData2016.zip, if it is at hand already.", show_default=False),
    ] = None,
) -> None:
    """Fetch the official SceneParse150, 150 classes of ADE20K: about 1 GB to download and as much unpacked.

    Broken off, the same command goes on. Afterwards [bold]--data scene_parse_150[/bold] opens it.

    [bold]Examples[/bold]

      ccsegformer data scene-parse-150

      ccsegformer data scene-parse-150 --output DIR

      ccsegformer data scene-parse-150 --output DIR --archive ADEChallengeData2016.zip
    """
    from ccsegformer.data.scene_parse_150.fetch import NAME, PAIRS, fetch_scene_parse_150

    folder = fetch_scene_parse_150(output, archive=archive)
    counts = " and ".join(f"{count:,} {split} pairs" for split, count in PAIRS.items())
    typer.echo(f"{folder}: {counts}; open it with --data {NAME}")


@app.command()
def procedural(
    output: Annotated[Path, typer.Option(help="A new folder for the scenes.", show_default=False)],
    size: Annotated[int, typer.Option(help="Width and height in pixels of 25 cm.")] = 2048,
    training: Annotated[int, typer.Option(help="How many scenes to train on.")] = 8,
    validation: Annotated[int, typer.Option(help="How many scenes to score on.")] = 2,
    seed: Annotated[int, typer.Option(help="Other seeds draw other scenes.")] = 0,
) -> None:
    """Generate aerial scenes as GeoTIFFs with masks: farmland that tells whether a model sees far.

    Of 2048 pixels a scene takes about 10 seconds, of 4096 half a minute and 3 GB of memory, of 8192 three
    minutes and 9 GB.

    [bold]Examples[/bold]

      ccsegformer data procedural --output DIR

      ccsegformer data procedural --output DIR --size 4096 --training 4 --validation 1
    """
    from ccsegformer.data.procedural.geotiff import write_scenes

    write_scenes(
        output, training=training, validation=validation, size=size, seed=seed, progress=sys.stderr.isatty()
    )
    typer.echo(f"{output}: {training} training and {validation} validation scenes of {size} x {size} pixels")
