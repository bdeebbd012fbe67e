"""What --open does."""

from pathlib import Path

import typer


def open_result(path: Path) -> None:
    """Show a file with the desktop's own program; stderr says so if there is none."""
    if typer.launch(str(path.resolve())):
        typer.echo(f"--open: found no program that shows {path}", err=True)
