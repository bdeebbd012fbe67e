"""`ccsegformer export`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import Model


class Format(StrEnum):
    """The kinds of file."""

    ONNX = "onnx"
    PT2 = "pt2"


def export(
    model: Model,
    format: Annotated[Format, typer.Option(help="ONNX, or PyTorch's torch.export.", show_default=False)],
    output: Annotated[Path, typer.Option(help="The file to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
) -> None:
    """Write a model as one file for other programs, of any image size, checked against PyTorch.

    [bold]Examples[/bold]

      ccsegformer export runs/report --format onnx --output report.onnx

      ccsegformer export nvidia/segformer-b0-finetuned-ade-512-512 --format pt2 --output b0.pt2
    """
    from ccsegformer.export.export import export as run
    from ccsegformer.labelling.loading import load_model

    loaded, classes = load_model(model, device="cpu")
    difference = run(loaded, classes, output, format.value, overwrite=overwrite)
    checked = (
        "not checked, since onnxruntime is not installed"
        if difference is None
        else f"within {difference:.1e} of PyTorch's largest logit, at three other sizes"
    )
    typer.echo(f"{output}: {checked}")
