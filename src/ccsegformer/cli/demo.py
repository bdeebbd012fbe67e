"""`ccsegformer demo`."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import OpenOption, OverwriteOption


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the comparison.")] = Path("runs/demo"),
    overwrite: OverwriteOption = False,
    show: OpenOption = False,
) -> None:
    """Compare the attentions on built-in aerial scenes; takes about ten minutes on two cores.

    [bold]Example[/bold]

      ccsegformer demo --output runs/demo
    """
    from ccsegformer.cli.compare import compare

    with as_file(files("ccsegformer.cli") / "demo.yaml") as recipe:
        compare(recipe, output, overwrite=overwrite, show=show)
