"""`ccsegformer data scene-parse-150`."""

from pathlib import Path
from typing import Annotated

import typer


def scene_parse_150(
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the data set. Default: scene_parse_150 in the user's cache.", show_default=False
        ),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(
            help="Existing copy of ADEChallengeData2016.zip. Default: download it.", show_default=False
        ),
    ] = None,
) -> None:
    """Download SceneParse150 (ADE20K with 150 classes): about 1 GB, and as much again unpacked.

    Repeat the command to continue an interrupted download. [bold]--data scene_parse_150[/bold] then opens the
    data set in other commands.

    [bold]Examples[/bold]

      ccsegformer data scene-parse-150

      ccsegformer data scene-parse-150 --output DIR

      ccsegformer data scene-parse-150 --output DIR --archive ADEChallengeData2016.zip
    """
    from ccsegformer.data.scene_parse_150.fetch import NAME, PAIRS, fetch_scene_parse_150

    folder = fetch_scene_parse_150(output, archive=archive)
    counts = " and ".join(f"{count:,} {split} pairs" for split, count in PAIRS.items())
    typer.echo(f"{folder}: {counts}; open it with --data {NAME}")
