"""`ccsegformer predict`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ccsegformer.cli._arguments import EngineOption, ModelArgument, PrecisionOption


class Blend(StrEnum):
    """What is averaged where windows overlap."""

    logits = "logits"
    probabilities = "probabilities"
    none = "none"


def predict(
    model: ModelArgument,
    images: Annotated[
        list[str],
        typer.Argument(help="Scenes, images, or folders of them; /vsicurl/... too.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option(help="A folder, or the map of one scene: NAME.tif.", show_default=False)
    ],
    window: Annotated[
        int | None,
        typer.Option(
            help="Side of the window that the network sees, in pixels. Default: what the memory allows.",
            min=32,
            show_default=False,
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            help="Of neighbouring windows, in pixels. Default: 128, or a quarter of a small window.",
            min=0,
            show_default=False,
        ),
    ] = None,
    blend: Annotated[
        Blend, typer.Option(help="What is averaged there; none cuts in the middle.")
    ] = Blend.logits,
    memory: Annotated[str, typer.Option(help="What the default window may take.")] = "4GB",
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
        typer.Option(help="Simplify their outlines by so much, in the map's units.", show_default=False),
    ] = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
) -> None:
    """Map georeferenced scenes as Cloud-Optimized GeoTIFFs, and label other images.

    Of an image, NAME.png holds the class ids and NAME_overlay.png shows them on the image. A map that was
    broken off goes on where it was when the same command is given again.

    [bold]Examples[/bold]

      ccsegformer predict runs/aerial scene.tif --output map.tif

      ccsegformer predict runs/aerial scene.tif --output map.tif --polygons map.gpkg --simplify 0.5

      ccsegformer predict runs/aerial scenes/ /vsicurl/https://example.org/a.tif --output maps --memory 8GB

      ccsegformer predict runs/report photographs/ more/*.png --output labelled
    """
    if simplify is not None and polygons is None:
        raise typer.BadParameter("is for polygons: name their file with --polygons", param_hint="--simplify")
    from ccsegformer.labelling.inputs import predict_inputs
    from ccsegformer.labelling.loading import load_engine

    opened, classes = load_engine(model, engine, precision)
    said = f"engine: {opened.describe()}{f' ({opened.note})' if opened.note else ''}"
    for written, notes in predict_inputs(
        opened,
        classes,
        images,
        output,
        window=window,
        overlap=overlap,
        blend=blend.value,
        memory=memory,
        confidence=confidence,
        polygons=polygons,
        simplify=simplify,
        progress=True,
    ):
        if said:
            typer.echo(said, err=True)
            said = ""
        typer.echo("  ".join(map(str, written)))
        for note in notes:
            typer.echo(note, err=True)
