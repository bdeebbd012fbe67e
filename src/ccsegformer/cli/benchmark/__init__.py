"""`ccsegformer benchmark`."""

import typer

from ccsegformer.cli.benchmark import attention, model

app = typer.Typer(
    name="benchmark",
    help="Measure time and memory against transformers and the textbook formula.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.command("model")(model.model)
app.command("attention")(attention.attention)
