"""`ccsegformer convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccsegformer.cli._arguments import DATA_HELP
from ccsegformer.cli.convert_checkpoint import LICENCE

if TYPE_CHECKING:
    from ccsegformer.conversion import Conversion


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Trained SegFormer with efficient attention: folder, or hub name.", show_default=False
        ),
    ],
    images: Annotated[
        Path,
        typer.Option(
            help="Folder of images, 20 or more, like those that the model will see.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option(help="New folder for the model.", show_default=False)],
    attention: Annotated[
        str, typer.Option(help="New attention of all stages, or of each.")
    ] = "criss_cross,criss_cross,efficient,efficient",
    data: Annotated[
        str | None,
        typer.Option(help=f"{DATA_HELP} Both models are scored on it.", show_default=False),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the crops in pixels; the size of use.", min=32)] = 512,
    steps: Annotated[int, typer.Option(help="Steps of distillation.", min=1)] = 400,
    teacher_window: Annotated[
        int | None,
        typer.Option(
            help="Side of the windows in which the teacher sees a crop that is larger than its own training "
            "crops. Default: it sees the whole crop.",
            min=32,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the conversion that was interrupted in OUTPUT.")
    ] = False,
) -> None:
    """Give a trained SegFormer criss-cross attention, with images that need no labels.

    The model learns to label as before: the figures are its agreement with the old one on images held back.
    With --data, both are also scored on labels.

    [bold]Examples[/bold]

      ccsegformer convert runs/mine --images photographs --output runs/criss-cross

      ccsegformer convert nvidia/segformer-b0-finetuned-ade-512-512 --images photographs --output cc-ade

      ccsegformer convert runs/mine --images scenes --size 1024 --teacher-window 512 --output runs/large
    """
    from ccsegformer.conversion import convert as run

    names = [name.strip() for name in attention.split(",")]
    done = run(
        checkpoint,
        images,
        output,
        attention=names[0] if len(names) == 1 else names,
        data=data,
        size=size,
        steps=steps,
        teacher_window=teacher_window,
        resume=resume,
        progress=True,
    )
    _print(done)
    if "nvidia" in checkpoint.lower():
        typer.echo(LICENCE, err=True)
    typer.echo(f"{output}: converted")


def _print(done: "Conversion") -> None:
    """Print the agreement of each class, and the scores."""
    from rich.console import Console
    from rich.table import Table

    from ccsegformer.report.table import number, span

    agreement, console = done.agreement, Console()
    table = Table("class", header_style="bold")
    for column in ("IoU with the teacher", "95% interval"):
        table.add_column(column, justify="right")
    for name, of in agreement.per_class.items():
        table.add_row(name, *(("–", "–") if of is None else (number(of["iou"]), span(of["interval"]))))
    table.add_row("mean", number(agreement.mean_iou), span(agreement.mean_iou_interval))
    table.add_row("pixels that agree", number(agreement.pixels), span(agreement.pixels_interval))
    console.print(table)
    console.print(f"agreement on {agreement.images} images held back; it says nothing about labels")
    if scores := done.record.get("scores"):
        console.print(
            f"mean IoU on {scores['images']} labelled images: before {number(scores['teacher'])}, "
            f"after {number(scores['student'])}, difference {scores['difference']:+.3f} "
            f"({span(scores['interval'])})",
            highlight=False,
        )
