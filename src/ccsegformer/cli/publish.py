"""`ccsegformer publish`."""

from pathlib import Path
from typing import Annotated

import typer


def publish(
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run, of a conversion, or of any trained SegFormer.", show_default=False
        ),
    ],
    to: Annotated[str, typer.Option(help="Name on the Hugging Face hub: user/name.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    license: Annotated[
        str | None,
        typer.Option(
            help="Licence of weights that were trained from random ones, such as cc-by-4.0. "
            "Weights that derive from others have theirs.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the card and list the files; upload nothing.")
    ] = False,
) -> None:
    """Publish a model on the Hugging Face hub, with a model card made from its run.

    The card, README.md, gives data, recipe, scores with their protocol and interval, limits and licence.
    Score the model first: ccsegformer evaluate RUN --data DIR --output RUN. Names of images, examples,
    checkpoints and logs are not published.

    [bold]Examples[/bold]

      ccsegformer publish runs/aerial --to me/aerial-b0 --dry-run

      ccsegformer publish runs/aerial --to me/aerial-b0 --private
    """
    from ccsegformer.publishing.upload import prepare_upload, upload

    files = prepare_upload(run, to, license)
    for file in files:
        typer.echo(f"{file.size:>13,} bytes  {file.name}")
    if dry_run:
        typer.echo(f"{run / 'README.md'}: written; nothing was uploaded")
        return
    address = upload(files, to, private=private)
    typer.echo(f"{address}: published{' (private)' * private}")
