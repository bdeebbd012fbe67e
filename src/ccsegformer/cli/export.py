"""`ccsegformer export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    model: Annotated[str, typer.Argument(help="Model folder or hub name.", show_default=False)],
    format: Annotated[
        Literal["onnx", "pt2"],
        typer.Option(help="File format: ONNX or PyTorch's torch.export.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option(help="File to write; NAME.json beside it describes it.", show_default=False)
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it exists.")] = False,
) -> None:
    """Export a model to one file for other programs, for any image size, checked against PyTorch.

    [bold]Examples[/bold]

      ccsegformer export runs/report --format onnx --output report.onnx

      ccsegformer export nvidia/segformer-b0-finetuned-ade-512-512 --format pt2 --output b0.pt2
    """
    from ccsegformer.errors import MissingExtraError, OutputError
    from ccsegformer.export import export as run
    from ccsegformer.export import model_item_path, write_model_item
    from ccsegformer.labelling.loading import load_model

    item = model_item_path(output)
    if item.exists() and not overwrite and not output.exists():  # `run` refuses an existing output
        raise OutputError(f"{item}: already exists; overwrite it or choose another name")
    loaded, classes = load_model(model, device="cpu")
    difference = run(loaded, classes, output, format, overwrite=overwrite)
    checked = (
        "not checked, because onnxruntime is not installed"
        if difference is None
        else f"differs from PyTorch by at most {difference:.1e} of the largest logit, at three other sizes"
    )
    typer.echo(f"{output}: {checked}")
    try:
        typer.echo(f"{write_model_item(loaded, classes, output, format)}: describes it for STAC and predict")
    except MissingExtraError as error:  # a pt2 file needs no extra
        typer.echo(f"not written: {error}", err=True)
