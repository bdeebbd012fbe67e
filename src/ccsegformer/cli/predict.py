"""`ccsegformer predict`."""

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ccsegformer.cli._arguments import EngineOption, ModelArgument, PrecisionOption
from ccsegformer.errors import CCSegformerError

Number = TypeVar("Number", int, float)


def predict(
    model: ModelArgument,
    images: Annotated[
        list[str],
        typer.Argument(help="Scenes, images, or folders of them; also /vsicurl/... .", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option(help="A folder, or the map of one scene: NAME.tif.", show_default=False)
    ],
    window: Annotated[
        int | None,
        typer.Option(
            help="Side of the window that the network sees, in pixels. Default: the fastest that fits.",
            min=32,
            show_default=False,
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            help="Overlap of neighbouring windows, in pixels. Default: 128, or a quarter of a small window.",
            min=0,
            show_default=False,
        ),
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory that the default window may take.")] = "4GB",
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Add a band to maps: the probability of the class.")
    ] = False,
    polygons: Annotated[
        Path | None,
        typer.Option(
            help="Also write the map's regions, with class and area: NAME.gpkg or NAME.geojson.",
            show_default=False,
        ),
    ] = None,
    simplify: Annotated[
        float | None,
        typer.Option(help="Tolerance for simpler outlines, in the map's units.", show_default=False),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="A classes.json. Default: the classes that the model names.", show_default=False),
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(help="Bands of scenes for the model, in its order: 4,3,2.", show_default=False),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="Mean of each band that the model expects, in stored units: 123.7,116.3,103.5. "
            "Default: what the model says, or ImageNet's.",
            show_default=False,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="Standard deviation of each band, in the same units.", show_default=False),
    ] = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first input that cannot be labelled.")
    ] = False,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Map georeferenced scenes as Cloud-Optimized GeoTIFFs, and label other images.

    For an image, NAME.png holds the class ids, and NAME_overlay.png shows them on the image. An interrupted
    map continues when the same command is run again. Inputs that cannot be labelled are listed at the end;
    the exit code is then 1.

    [bold]Examples[/bold]

      ccsegformer predict runs/aerial scene.tif --output map.tif

      ccsegformer predict runs/aerial scene.tif --output map.tif --polygons map.gpkg --simplify 0.5

      ccsegformer predict runs/aerial scenes/ /vsicurl/https://example.org/a.tif --output maps --memory 8GB

      ccsegformer predict unet.onnx scene.tif --output map.tif --classes classes.json --bands 4,3,2

      ccsegformer predict runs/report photographs/ more/*.png --output labelled
    """
    if simplify is not None and polygons is None:
        raise typer.BadParameter("is for polygons: name their file with --polygons", param_hint="--simplify")
    if (mean is None) != (std is None):
        raise typer.BadParameter("give both, or neither", param_hint="--mean, --std")
    from ccsegformer.data.colors import read_class_file
    from ccsegformer.labelling.inputs import predict_inputs
    from ccsegformer.labelling.loading import load_engine
    from ccsegformer.labelling.preprocess import given_preprocessing

    named = read_class_file(classes) if classes else None
    preprocessing = None
    if mean is not None and std is not None:
        preprocessing = given_preprocessing(_numbers(mean, "--mean"), _numbers(std, "--std"))
    opened, found = load_engine(model, engine, precision, classes=named, preprocessing=preprocessing)
    numbers = None if bands is None else tuple(_numbers(bands, "--bands", int))
    failed: list[CCSegformerError] = []
    said = f"engine: {opened.describe()}{f' ({opened.note})' if opened.note else ''}"
    try:
        for written, notes in predict_inputs(
            opened,
            found,
            images,
            output,
            window=window,
            overlap=overlap,
            memory=memory,
            scene_options={
                "bands": numbers,
                "confidence": confidence,
                "polygons": polygons,
                "simplify": simplify,
            },
            progress=True,
            failed=None if fail_fast else failed,
        ):
            if said:
                typer.echo(said, err=True)
                said = ""
            typer.echo("  ".join(map(str, written)))
            for note in notes:
                typer.echo(note, err=True)
    finally:  # also when an error ends the run
        for error in failed:
            typer.echo(f"ccsegformer: error: {error}", err=True)
    if failed:
        raise typer.Exit(1)


def _numbers(text: str, option: str, kind: type[Number] = float) -> list[Number]:  # type: ignore[assignment]
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"write numbers with commas between them, not {text!r}", param_hint=option
        ) from None
