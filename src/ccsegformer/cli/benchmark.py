"""`ccsegformer benchmark`: attention and model."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ccsegformer.benchmark.tables import Specifications

app = typer.Typer(
    name="benchmark",
    help="Time and memory against transformers and the textbook formula.",
    no_args_is_help=True,
)


class Precision(StrEnum):
    """What is computed in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Variant(StrEnum):
    """SegFormer's sizes."""

    B0 = "b0"
    B1 = "b1"
    B2 = "b2"
    B3 = "b3"
    B4 = "b4"
    B5 = "b5"


class Attention(StrEnum):
    """What ours computes with."""

    EFFICIENT = "efficient"
    CRISS_CROSS = "criss_cross"


Output = Annotated[
    Path | None,
    typer.Option(help="A folder for the Markdown, the JSON and the plot; default: none.", show_default=False),
]
Sizes = Annotated[list[int] | None, typer.Option("--size", min=32, help="Side in pixels. May be repeated.")]
Grids = Annotated[list[int] | None, typer.Option("--size", min=1, help="Side in positions. May be repeated.")]
Rounds = Annotated[int, typer.Option(min=1, help="How often each contender is timed.")]
Batch = Annotated[int, typer.Option(min=1)]
Training = Annotated[bool, typer.Option("--training", help="Forward and backward instead of inference.")]
Dtype = Annotated[Precision, typer.Option()]


@app.command("model")
def model(
    variant: Annotated[list[Variant] | None, typer.Option(help="May be repeated. Default: b0.")] = None,
    size: Sizes = None,
    attention: Annotated[list[Attention] | None, typer.Option(help="May be repeated. Default: both.")] = None,
    batch: Batch = 1,
    training: Training = False,
    dtype: Dtype = Precision.FLOAT32,
    compiled: Annotated[bool, typer.Option("--compile", help="Add torch.compile of each; minutes.")] = False,
    rounds: Rounds = 5,
    output: Output = None,
) -> None:
    """Ours beside transformers' SegFormer with the same weights: SDPA, plain and channels-last.

    [bold]Examples[/bold]

      ccsegformer benchmark model --size 512 --size 1024

      ccsegformer benchmark model --variant b2 --compile --output benchmarks/results/laptop
    """
    from ccsegformer.benchmark.tables import model_contests

    common = {"batch": batch, "training": training, "dtype": dtype.value}
    variants = [each.value for each in variant or [Variant.B0]]
    attentions = [each.value for each in attention or Attention]
    what = f"{', '.join(variants).upper()} with 150 classes, batch {batch}, {dtype.value}, {_mode(training)}"
    contests = model_contests(variants, size or [512, 1024], attentions, compiled, common | _place())
    _run(contests, f"model-{_name(training, dtype, batch)}", what, rounds, dtype, output)


@app.command("attention")
def attention(
    size: Grids = None,
    heads: Annotated[int, typer.Option(min=1)] = 1,
    head_dim: Annotated[int, typer.Option(min=1)] = 32,
    batch: Batch = 1,
    training: Training = False,
    dtype: Dtype = Precision.FLOAT32,
    rounds: Rounds = 5,
    output: Output = None,
) -> None:
    """Criss-cross attention alone: each backend that runs here against the textbook formula.

    [bold]Examples[/bold]

      ccsegformer benchmark attention --size 128 --size 256 --training
    """
    from ccsegformer.benchmark.tables import attention_contests

    place = _place()
    backends = ["flash", "fused"] if place["device"] == "cuda" else ["flash"]
    common = {
        "batch": batch,
        "heads": heads,
        "head_dim": head_dim,
        "training": training,
        "dtype": dtype.value,
    }
    shape = f"batch {batch}, {heads} {'heads' if heads > 1 else 'head'} of {head_dim}"
    what = f"Criss-cross attention, {shape}, {dtype.value}, {_mode(training)}"
    contests = attention_contests(size or [64, 128, 256], backends, common | place)
    _run(contests, f"attention-{_name(training, dtype, batch)}", what, rounds, dtype, output)


def _mode(training: bool) -> str:
    return "forward and backward" if training else "forward"


def _name(training: bool, dtype: Precision, batch: int) -> str:
    return f"{'training' if training else 'inference'}-{dtype.value}-batch-{batch}"


def _place() -> dict[str, Any]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": torch.get_num_threads()}


def _run(
    contests: "Iterator[tuple[str, Specifications]]",
    name: str,
    what: str,
    rounds: int,
    dtype: Precision,
    output: Path | None,
) -> None:
    """Measure, and print each table as it comes."""
    from ccsegformer.benchmark.contest import measure_limits
    from ccsegformer.benchmark.output import markdown, preamble, write
    from ccsegformer.benchmark.tables import measure
    from ccsegformer.report.machine import describe_machine

    settings = {"what": what, "rounds": rounds, **_place()}
    limits = measure_limits(dtype.value, settings["device"], settings["threads"])
    machine = describe_machine()
    typer.echo(preamble(machine, settings, limits))
    tables = {}
    for heading, specifications in contests:
        tables[heading] = measure(specifications, rounds, limits)
        typer.echo(markdown(heading, tables[heading]))
    if output:
        write(output, name, machine, settings, limits, tables)
        typer.echo(f"{output / name}.md")
