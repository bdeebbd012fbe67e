"""`ccsegformer convert-checkpoint`."""

from pathlib import Path
from typing import Annotated

import typer

LICENCE = (
    "licence: NVIDIA's SegFormer weights, and models trained from them, are for research and evaluation "
    "only, not for commercial use"
)


def convert_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="File of NVlabs/SegFormer or mmsegmentation: NAME.pth.", show_default=False),
    ],
    output: Annotated[Path, typer.Option(help="New folder for the model.", show_default=False)],
    classes: Annotated[
        Path | None,
        typer.Option(help="A classes.json. Default: the classes that the file names.", show_default=False),
    ] = None,
    encoder_only: Annotated[
        bool,
        typer.Option("--encoder-only", help="Leave out the decode head, which training then makes anew."),
    ] = False,
) -> None:
    """Convert a .pth file of SegFormer's authors or of mmsegmentation to a folder for every other command.

    The file's weights alone are read: no code in it runs. Every tensor is used or listed. mmsegmentation's
    decode head is another than SegFormer's and cannot be converted; its encoder can.

    [bold]Examples[/bold]

      ccsegformer convert-checkpoint mit_b0.pth --output mit-b0

      ccsegformer convert-checkpoint segformer.b0.512x512.ade.160k.pth --output segformer-b0-ade

      ccsegformer convert-checkpoint segformer_mit-b0.pth --output mit-b0 --encoder-only
    """
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    from ccsegformer.data.labels import read_classes, write_classes
    from ccsegformer.errors import OutputError
    from ccsegformer.files import folder_written_aside
    from ccsegformer.models.original_checkpoints import convert_original
    from ccsegformer.models.origins import write_origins
    from ccsegformer.training._output import image_processor

    disable_progress_bar()
    named = read_classes(classes) if classes else None
    with folder_written_aside(output) as folder:
        converted = convert_original(
            checkpoint, None if named is None else [*named.id2label.values()], encoder_only=encoder_only
        )
        try:
            converted.model.save_pretrained(folder)
        except SafetensorError as error:
            raise OutputError(f"{output}: cannot be written: {error}") from error
        if converted.model.config.num_channels == 3:
            image_processor(converted.model.config).save_pretrained(folder)
        write_origins(folder, (f"SegFormer checkpoint {checkpoint.name}",))
        if named is not None and converted.has_head:
            write_classes(named, folder / "classes.json")
    for line in converted.describe():
        typer.echo(line, err=True)
    typer.echo(LICENCE, err=True)
    typer.echo(f"{output}: converted")
