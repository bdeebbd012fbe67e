"""`ccsegformer benchmark`: attention and model."""

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccsegformer.cli._arguments import attentions_or_usage_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ccsegformer.lab.benchmark.tables import Specification, Specifications

BESIDE = "beside a busy process"

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


class Runtime(StrEnum):
    """What runs the contenders."""

    EAGER = "eager"
    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"


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
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Of every contender. Default: PyTorch's own number.", show_default=False),
]
Busy = Annotated[
    bool,
    typer.Option("--busy", help="Beside a process that keeps one core busy, as on a machine that is shared."),
]


@app.command("model")
def model(
    variant: Annotated[list[Variant] | None, typer.Option(help="May be repeated. Default: b0.")] = None,
    size: Sizes = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(help="Such as efficient or criss_cross; may be repeated. Default: all."),
    ] = None,
    batch: Batch = 1,
    training: Training = False,
    dtype: Dtype = Precision.FLOAT32,
    runtime: Annotated[
        Runtime | None, typer.Option(help="Of all contenders, for a short run. Default: every one.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Add torch.compile of each; minutes.")] = False,
    threads: Threads = None,
    busy: Busy = False,
    rounds: Rounds = 5,
    output: Output = None,
) -> None:
    """Ours beside transformers' SegFormer with the same weights, in whatever runs it fastest.

    transformers': plain, channels-last and, with --compile, compiled; on CPU, where they are installed, in
    OpenVINO and in ONNX Runtime. Ours: in the OpenVINO engine, as a PyTorch module, and as ONNX. ONNX Runtime
    takes part in float32 alone, and neither in training.

    [bold]Examples[/bold]

      ccsegformer benchmark model --size 512 --size 1024

      ccsegformer benchmark model --size 512 --threads 1 --busy --runtime openvino

      ccsegformer benchmark model --variant b2 --compile --output benchmarks/results/laptop
    """
    from ccsegformer.lab.benchmark.output import count_threads
    from ccsegformer.lab.benchmark.runtimes import missing
    from ccsegformer.lab.benchmark.tables import able, model_contests, run_by

    place = _place(threads)
    common = {"batch": batch, "training": training, "dtype": dtype.value, **place}
    variants = [each.value for each in variant or [Variant.B0]]
    attentions = attentions_or_usage_error(attention)
    where = count_threads(place["threads"]) + (f", {BESIDE}" if busy else "")
    what = f"{', '.join(variants).upper()} with 150 classes, batch {batch}, {dtype.value}, {_mode(training)}"
    name = f"model-{_name(training, dtype, batch)}"
    name += f"-threads-{threads}" if threads else ""
    contests = model_contests(variants, size or [512, 1024], attentions, compiled, where, common)
    if runtime:
        contests = ((heading, run_by(runtime.value, found)) for heading, found in contests)
    lacking = {name: package for name, package in missing().items() if name in able(common)}
    _run(contests, name, what, rounds, common, output, busy=busy, lacking=lacking)


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
    from ccsegformer.lab.benchmark.tables import attention_contests

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
    _run(contests, f"attention-{_name(training, dtype, batch)}", what, rounds, common | place, output)


def _mode(training: bool) -> str:
    return "forward and backward" if training else "forward"


def _name(training: bool, dtype: Precision, batch: int) -> str:
    return f"{'training' if training else 'inference'}-{dtype.value}-batch-{batch}"


def _place(threads: int | None = None) -> dict[str, Any]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": threads or torch.get_num_threads()}


def _run(
    contests: "Iterator[tuple[str, Specifications]]",
    name: str,
    what: str,
    rounds: int,
    common: "Specification",
    output: Path | None,
    *,
    busy: bool = False,
    lacking: "Mapping[str, str] | None" = None,
) -> None:
    """Measure, and print each table as it comes.

    Args:
        common: to all contenders.
        busy: beside a busy process.
        lacking: the package that is not installed, of each runtime that therefore takes no part.
    """
    from ccsegformer.lab.benchmark.contest import busy_process, measure_limits
    from ccsegformer.lab.benchmark.output import markdown, preamble, write
    from ccsegformer.lab.benchmark.tables import measure
    from ccsegformer.report.machine import describe_machine

    settings = {"what": what, "rounds": rounds, "busy": busy, "missing": lacking or {}, **common}
    if busy:
        settings["what"], name = f"{what}, {BESIDE}", f"{name}-busy"
    limits = measure_limits(common["dtype"], common["device"], common["threads"])
    machine = describe_machine() | {"threads": common["threads"]}
    typer.echo(preamble(machine, settings, limits))
    tables = {}
    with busy_process() if busy else nullcontext():
        for heading, specifications in contests:
            tables[heading] = measure(specifications, rounds, limits)
            typer.echo(markdown(heading, tables[heading]))
    if output:
        write(output, name, machine, settings, limits, tables)
        typer.echo(f"{output / name}.md")
