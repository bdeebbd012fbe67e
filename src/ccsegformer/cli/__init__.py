"""Command line. Exit codes: 0 for success, 1 for a failure reported in one line, 2 for wrong usage."""

import os
import sys

import typer

from ccsegformer import __version__
from ccsegformer.cli import (
    attention,
    benchmark,
    compare,
    convert,
    convert_checkpoint,
    data,
    demo,
    evaluate,
    export,
    map,
    predict,
    publish,
    train,
)
from ccsegformer.cli.app import app as app_command  # `app` below hides the module of that name
from ccsegformer.errors import CCSegformerError, optional_imports

app = typer.Typer(
    name="ccsegformer",
    help="SegFormer for large images, with efficient or criss-cross attention in every stage.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    train.train,
    evaluate.evaluate,
    predict.predict,
    attention.attention,
    map.map,
    export.export,
    publish.publish,
    compare.compare,
    convert.convert,
    convert_checkpoint.convert_checkpoint,
    demo.demo,
    app_command,
):
    app.command()(command)
app.add_typer(data.app)
app.add_typer(benchmark.app)


@app.callback(invoke_without_command=True)
def _global_options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        typer.echo(f"ccsegformer {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. Expected errors are printed in one line on stderr, with exit code 1."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        with optional_imports("this command"):
            app()
    except CCSegformerError as error:
        sys.exit(_fail(str(error)))
    except OSError as error:
        sys.exit(_fail(f"{error.filename}: {error.strerror}" if error.filename else str(error)))


def _fail(message: str) -> int:
    print(f"ccsegformer: error: {message}", file=sys.stderr)
    return 1
