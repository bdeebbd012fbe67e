"""`ccsegformer export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ccsegformer.cli._arguments import OverlapOption


def export(
    model: Annotated[str, typer.Argument(help="Model folder or hub name; or example.", show_default=False)],
    output: Annotated[
        Path, typer.Option(help="File to write; NAME.json beside it describes it.", show_default=False)
    ],
    format: Annotated[
        Literal["onnx", "pt2"] | None,
        typer.Option(help="File format: ONNX or PyTorch's torch.export.", show_default=False),
    ] = None,
    program: Annotated[
        Literal["qgis"] | None,
        typer.Option("--for", help="Write ONNX for QGIS's plugin Deepness and geodeep.", show_default=False),
    ] = None,
    resolution: Annotated[
        float | None,
        typer.Option(
            help="Centimetres per pixel of the scenes that the model was trained on; needed by --for qgis.",
            show_default=False,
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Side of QGIS's tiles, in pixels. Default: 512.", min=32, show_default=False),
    ] = None,
    overlap: OverlapOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it exists.")] = False,
) -> None:
    """Export a model to one file for other programs, for any image size, checked against PyTorch.

    [bold]Examples[/bold]

      ccsegformer export runs/report --format onnx --output report.onnx

      ccsegformer export nvidia/segformer-b0-finetuned-ade-512-512 --format pt2 --output b0.pt2

      ccsegformer export runs/aerial --for qgis --resolution 25 --output aerial.onnx
    """
    if program is None:
        for option, given in (("resolution", resolution), ("window", window), ("overlap", overlap)):
            if given is not None:
                raise typer.BadParameter("is for QGIS: add --for qgis", param_hint=f"--{option}")
        if format is None:
            raise typer.BadParameter("give onnx or pt2, or --for qgis", param_hint="--format")
        _export_file(model, output, format, overwrite)
        return
    if format == "pt2":
        raise typer.BadParameter("QGIS takes ONNX: leave the format out", param_hint="--format")
    if resolution is None:
        raise typer.BadParameter("give the model's centimetres per pixel", param_hint="--resolution")
    _export_for_qgis(model, output, resolution, window, overlap, overwrite)


def _export_file(model: str, output: Path, format: Literal["onnx", "pt2"], overwrite: bool) -> None:
    from ccsegformer.errors import MissingExtraError, OutputError
    from ccsegformer.export import export as run
    from ccsegformer.export import model_item_path, write_model_item
    from ccsegformer.labelling.loading import load_model

    item = model_item_path(output)
    if item.exists() and not overwrite and not output.exists():  # `run` refuses an existing output
        raise OutputError(f"{item}: already exists; overwrite it or choose another name")
    loaded, classes = load_model(model, device="cpu")
    difference = run(loaded, classes, output, format, overwrite=overwrite)
    typer.echo(f"{output}: {_checked(difference, 'logit, at three other sizes')}")
    try:
        typer.echo(f"{write_model_item(loaded, classes, output, format)}: describes it for STAC and predict")
    except MissingExtraError as error:  # a pt2 file needs no extra
        typer.echo(f"not written: {error}", err=True)


def _export_for_qgis(
    model: str, output: Path, resolution: float, window: int | None, overlap: int | None, overwrite: bool
) -> None:
    from ccsegformer.export import export_for_qgis
    from ccsegformer.labelling.loading import load_model

    loaded, classes = load_model(model, device="cpu")
    difference = export_for_qgis(
        *(loaded, classes, output),
        resolution=resolution,
        window=window,
        overlap=overlap,
        overwrite=overwrite,
    )
    typer.echo(f"{output}: {_checked(difference, 'probability, for three tiles')}")


def _checked(difference: float | None, unit: str) -> str:
    if difference is None:
        return "not checked, because onnxruntime is not installed"
    return f"differs from PyTorch by at most {difference:.1e} of the largest {unit}"
