"""`ccsegformer benchmark attention`."""

from typing import Annotated

import typer

from ccsegformer.cli.benchmark._options import (
    BatchOption,
    DtypeOption,
    ResultsOption,
    RoundsOption,
    TrainingOption,
)


def attention(
    size: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Side of the square grid, in positions. Can be repeated. Default: 64, 128 and 256.",
            show_default=False,
        ),
    ] = None,
    heads: Annotated[int, typer.Option(min=1, help="Number of attention heads.")] = 1,
    head_dim: Annotated[int, typer.Option(min=1, help="Channels per head.")] = 32,
    batch: BatchOption = 1,
    training: TrainingOption = False,
    dtype: DtypeOption = "float32",
    rounds: RoundsOption = 5,
    output: ResultsOption = None,
) -> None:
    """Compare the backends of criss-cross attention with the textbook formula.

    [bold]Examples[/bold]

      ccsegformer benchmark attention --size 128 --size 256 --training
    """
    from ccsegformer.lab.benchmark.plan import plan_attention
    from ccsegformer.lab.benchmark.run import run_benchmark

    plan = plan_attention(
        size or [64, 128, 256], heads=heads, head_dim=head_dim, batch=batch, training=training, dtype=dtype
    )
    run_benchmark(plan, rounds=rounds, output=output, show=typer.echo)
