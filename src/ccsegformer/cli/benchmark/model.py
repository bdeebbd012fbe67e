"""`ccsegformer benchmark model`."""

from enum import StrEnum
from typing import Annotated, Literal

import typer

from ccsegformer.cli._arguments import AttentionOption, attentions_or_usage_error
from ccsegformer.cli.benchmark._options import (
    BatchOption,
    DtypeOption,
    ResultsOption,
    RoundsOption,
    TrainingOption,
)


class Variant(StrEnum):
    """Sizes of SegFormer. (Typer does not support lists of literals.)"""

    B0 = "b0"
    B1 = "b1"
    B2 = "b2"
    B3 = "b3"
    B4 = "b4"
    B5 = "b5"


def model(
    variant: Annotated[
        list[Variant] | None,
        typer.Option(help="Size of SegFormer. Can be repeated. Default: b0.", show_default=False),
    ] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(
            min=32,
            help="Side of the square image, in pixels. Can be repeated. Default: 512 and 1024.",
            show_default=False,
        ),
    ] = None,
    attention: AttentionOption = None,
    batch: BatchOption = 1,
    training: TrainingOption = False,
    dtype: DtypeOption = "float32",
    runtime: Annotated[
        Literal["eager", "openvino", "onnxruntime"] | None,
        typer.Option(help="Measure only this runtime. Default: all that are available.", show_default=False),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also measure torch.compile, which takes minutes.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Number of CPU threads. Default: PyTorch's choice.", show_default=False),
    ] = None,
    busy: Annotated[
        bool, typer.Option("--busy", help="Keep one core busy meanwhile, as on a shared machine.")
    ] = False,
    rounds: RoundsOption = 5,
    output: ResultsOption = None,
) -> None:
    """Compare our models with transformers' SegFormer, each in its fastest runtime.

    transformers' model runs in PyTorch, plain and channels-last, and on a CPU in OpenVINO and ONNX Runtime if
    they are installed. Our models run in PyTorch, in the OpenVINO engine and as ONNX files. OpenVINO and
    ONNX Runtime are left out of training, ONNX Runtime also of every number format but float32.

    [bold]Examples[/bold]

      ccsegformer benchmark model --size 512 --size 1024

      ccsegformer benchmark model --size 512 --threads 1 --busy --runtime openvino

      ccsegformer benchmark model --variant b2 --compile --output benchmarks/results/laptop
    """
    from ccsegformer.lab.benchmark.plan import plan_models
    from ccsegformer.lab.benchmark.run import run_benchmark

    plan = plan_models(
        [each.value for each in variant or [Variant.B0]],
        size or [512, 1024],
        attentions_or_usage_error(attention),
        batch=batch,
        training=training,
        dtype=dtype,
        runtime=runtime,
        compiled=compiled,
        threads=threads,
        busy=busy,
    )
    run_benchmark(plan, rounds=rounds, output=output, show=typer.echo)
