"""`ccsegformer data`."""

import typer

from ccsegformer.cli.data import procedural, scene_parse_150

app = typer.Typer(
    name="data", help="Download or generate data sets.", no_args_is_help=True, rich_markup_mode="rich"
)
app.command("scene-parse-150")(scene_parse_150.scene_parse_150)
app.command("procedural")(procedural.procedural)
