"""`ccsegformer predict`."""

from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import Model


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", show_default=False)],
    output: Annotated[Path, typer.Option(help="The folder for the label images.", show_default=False)],
) -> None:
    """Label images: NAME.png holds the class ids, NAME_overlay.png shows them on the image.

    [bold]Examples[/bold]

      ccsegformer predict runs/report photograph.jpg --output labelled

      ccsegformer predict runs/report photographs/ more/*.png --output labelled
    """
    from ccsegformer.inference.predictor import load_model, predict_files

    loaded, classes = load_model(model)
    for labels, overlay in predict_files(loaded, classes, images, output, progress=True):
        typer.echo(f"{labels}  {overlay}")
