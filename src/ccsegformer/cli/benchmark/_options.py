"""Options that both benchmarks share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

BatchOption = Annotated[int, typer.Option(min=1, help="Number of inputs at a time.")]
TrainingOption = Annotated[
    bool, typer.Option("--training", help="Measure forward and backward passes instead of inference.")
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Number format to compute in.")
]
RoundsOption = Annotated[int, typer.Option(min=1, help="Number of timings of each contender.")]
ResultsOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the tables (Markdown), the figures (JSON) and a plot (SVG). "
        "Default: nothing is written.",
        show_default=False,
    ),
]
