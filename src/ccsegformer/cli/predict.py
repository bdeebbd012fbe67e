"""`ccsegformer predict`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import (
    BandsOption,
    ConfidenceOption,
    EngineOption,
    MeanOption,
    MemoryOption,
    ModelArgument,
    ModelClassesOption,
    OpenOption,
    OverlapOption,
    PrecisionOption,
    SimplifyOption,
    StdOption,
    WindowOption,
    band_numbers_or_usage_error,
    preprocessing_or_usage_error,
)
from ccsegformer.errors import CCSegformerError


def predict(
    model: ModelArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Scenes, images, or folders of them; also /vsicurl/... . Without any, example labels a "
            "scene of its own.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="A folder, or the map of one scene: NAME.tif.")] = Path(
        "labelled"
    ),
    window: WindowOption = None,
    overlap: OverlapOption = None,
    memory: MemoryOption = "4GB",
    confidence: ConfidenceOption = False,
    polygons: Annotated[
        Path | None,
        typer.Option(
            help="Also write the map's regions, with class and area: NAME.gpkg, .geojson or .parquet.",
            show_default=False,
        ),
    ] = None,
    simplify: SimplifyOption = None,
    classes: ModelClassesOption = None,
    bands: BandsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first input that cannot be labelled.")
    ] = False,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    show: OpenOption = False,
) -> None:
    """Map georeferenced scenes as Cloud-Optimized GeoTIFFs, and label other images.

    For an image, NAME.png holds the class ids, and NAME_overlay.png shows them on the image. An interrupted
    map continues when the same command is run again. Inputs that cannot be labelled are listed at the end;
    the exit code is then 1.

    The model named example ships with the package and needs no network.

    [bold]Examples[/bold]

      ccsegformer predict example --open

      ccsegformer predict runs/aerial scene.tif --output map.tif

      ccsegformer predict runs/aerial scene.tif --output map.tif --polygons map.gpkg --simplify 0.5

      ccsegformer predict runs/aerial scenes/ /vsicurl/https://example.org/a.tif --output maps --memory 8GB

      ccsegformer predict unet.onnx scene.tif --output map.tif --classes classes.json --bands 4,3,2

      ccsegformer predict runs/report photographs/ more/*.png --output labelled
    """
    if simplify is not None and polygons is None:
        raise typer.BadParameter("is for polygons: name their file with --polygons", param_hint="--simplify")
    preprocessing = preprocessing_or_usage_error(mean, std)
    began = time.monotonic()  # loading the libraries is most of the time of a single image
    from ccsegformer.cli._open import open_result
    from ccsegformer.cli._shares import ClassShares
    from ccsegformer.data.colors import read_class_file
    from ccsegformer.labelling.example import EXAMPLE, write_example_scene
    from ccsegformer.labelling.inputs import predict_inputs
    from ccsegformer.labelling.loading import load_engine

    if not images and (model != EXAMPLE or output.suffix):
        raise typer.BadParameter("name at least one image", param_hint="IMAGES")
    named = read_class_file(classes) if classes else None
    opened, found = load_engine(model, engine, precision, classes=named, preprocessing=preprocessing)
    if not images:
        images = [str(write_example_scene(output))]
        typer.echo(images[0])
    shares = ClassShares(found)
    shown: Path | None = None
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
                "bands": band_numbers_or_usage_error(bands),
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
            shares.add(written)
            shown = shown or written[-1]
    finally:  # also when an error ends the run
        for error in failed:
            typer.echo(f"ccsegformer: error: {error}", err=True)
    shares.print(time.monotonic() - began)
    if show and shown is not None:
        open_result(shown)
    if failed:
        raise typer.Exit(1)
