"""`ccsegformer demo`."""

from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import Overwrite


def demo(
    output: Annotated[Path, typer.Option(help="The folder of the comparison.")] = Path("runs/demo"),
    overwrite: Overwrite = False,
) -> None:
    """Compare both attentions, and none, on the embedded aerial scenes: about ten minutes on two cores.

    [bold]Example[/bold]

      ccsegformer demo --output runs/demo
    """
    from ccsegformer.cli.compare import compare

    with as_file(files("ccsegformer.cli") / "demo.yaml") as recipe:
        compare(recipe, output, overwrite=overwrite)
