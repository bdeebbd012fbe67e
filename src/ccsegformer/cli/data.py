"""`ccsegformer data`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="data",
    help="Fetch data sets.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _group() -> None:
    """Without this, typer would make the only command the group itself."""


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
    from ccsegformer.data.fetch import NAME, PAIRS, fetch_scene_parse_150

    folder = fetch_scene_parse_150(output, archive=archive)
    counts = " and ".join(f"{count:,} {split} pairs" for split, count in PAIRS.items())
    typer.echo(f"{folder}: {counts}; open it with --data {NAME}")
