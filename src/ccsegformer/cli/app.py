"""`ccsegformer app`."""

from pathlib import Path
from typing import Annotated

import typer


def app(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Models to choose from: folders, hub names or model files. Default: example, which ships.",
            show_default=False,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder whose scenes may be opened by path. Default: none.", show_default=False),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder whose runs are listed.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="Address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8765,
) -> None:
    """Label images and scenes in the browser, on this machine.

    Serves a page until Ctrl+C. Nothing is sent elsewhere, and temporary files are removed at the end. The
    page has no password: on an address other than 127.0.0.1, whoever reaches it can use it.

    [bold]Examples[/bold]

      ccsegformer app runs/mine

      ccsegformer app runs/efficient runs/criss_cross --root /data/scenes
    """
    from ccsegformer.app.server import serve_app
    from ccsegformer.app.workspace import opened_workspace
    from ccsegformer.labelling.example import EXAMPLE

    with opened_workspace(models or [EXAMPLE], root, runs) as workspace:
        serve_app(workspace, host, port, lambda address: typer.echo(f"{address}  (Ctrl+C ends)"))
