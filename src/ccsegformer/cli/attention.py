"""`ccsegformer attention`."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def attention(
    model: Annotated[
        str,
        typer.Argument(help="SegFormer to look into: folder or hub name; or example.", show_default=False),
    ],
    image: Annotated[Path, typer.Argument(help="Photograph or raster.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            help="NAME.html, a page to click on; or NAME.png or NAME.svg, a figure of one pixel.",
            show_default=False,
        ),
    ],
    at: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y",
            help="Pixel, counted from 0 at the upper left. Default: the middle.",
            show_default=False,
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(help="Another model to show beside it. Can be repeated.", show_default=False),
    ] = None,
    stage: Annotated[
        int | None,
        typer.Option(
            help="Show each block and head of this stage in a figure. Default: the last two blocks of every "
            "stage, averaged over heads.",
            min=1,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show where a pixel looks: the attention weights of its position, in each stage, block and head.

    Criss-cross attention has a row and a column of weights, efficient attention a coarse map. Where two
    criss-cross blocks follow one another, their composition shows how the pixel reaches the whole image.

    [bold]Examples[/bold]

      ccsegformer attention runs/criss_cross scene.png --at 320,200 --output attention.png

      ccsegformer attention runs/criss_cross scene.png --beside runs/efficient --output attention.html

      ccsegformer attention runs/criss_cross scene.png --at 320,200 --stage 3 --output stage3.png
    """
    suffix = output.suffix.lower()
    if suffix not in (".html", ".png", ".svg"):
        raise typer.BadParameter(f"{output}: name a .html, .png or .svg file", param_hint="--output")
    if stage is not None and suffix == ".html":
        raise typer.BadParameter("is for figures; the page has every stage", param_hint="--stage")
    pixel = _pixel_or_usage_error(at)
    from ccsegformer.errors import DataError
    from ccsegformer.files import check_writable, write_atomically
    from ccsegformer.labelling.loading import load_model
    from ccsegformer.report.attention_figure import attention_figure, write_figure
    from ccsegformer.report.attention_maps import attend_image, read_whole_image
    from ccsegformer.report.attention_page import render_attention

    check_writable(output)
    shown = read_whole_image(image)
    height, width = shown.shape[1:]
    y, x = pixel or (height // 2, width // 2)
    if not (0 <= y < height and 0 <= x < width):
        raise DataError(f"{image}: has no pixel {x},{y}; it has {width} x {height}")
    models = {}
    for name in dict.fromkeys([model, *(beside or [])]):
        loaded, _ = load_model(name)
        if stage is not None and stage > len(loaded.config.depths):
            raise DataError(f"{name}: has no stage {stage}; it has {len(loaded.config.depths)}")
        models[name] = attend_image(loaded, shown, image)
    if suffix == ".html":
        command = ["ccsegformer", *sys.argv[1:]]
        page = render_attention(models, shown, name=image.name, pixel=(y, x), command=command)
        write_atomically(output, page)
    else:
        place = None if stage is None else stage - 1
        write_figure(output, attention_figure(models, shown, (y, x), stage=place))
    typer.echo(str(output))


def _pixel_or_usage_error(at: str | None) -> tuple[int, int] | None:
    """Return the pixel (y, x) of an option X,Y."""
    if at is None:
        return None
    try:
        x, y = map(int, at.split(","))
    except ValueError:
        raise typer.BadParameter(f"{at!r}: give two whole numbers, X,Y", param_hint="--at") from None
    return y, x
