"""Measure what one inference costs: parameters, floating-point operations, peak memory and time.

Peak memory can only be measured in a fresh process, because memory freed earlier is reused. `measure_cost`
therefore starts `python -m ccsegformer.lab.cost`, which prints JSON.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ccsegformer.ops  # registers the operators counted below  # noqa: F401
from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.memory import free_at_once, peak_memory
from ccsegformer.labelling.engine import Engine, evaluation_mode, open_engine

MEBIBYTE = 2**20
GIGA = 10**9
MEASURED_SECONDS = 3
FEWEST_PASSES = 5


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one float32 forward pass of one image (bands, height, width), without resizing the logits."""

    parameters: int
    gflops: float
    """10^9 floating-point operations; a multiply-add counts as 2 (many papers count 1)."""
    peak_memory_mib: float
    """Memory that the first pass needs in addition to the open engine. CPU: resident memory, including what
    the engine compiles, reproducible to about 10%. CUDA: allocated memory."""
    images_per_second: float
    """From the median of at least five passes in three seconds, after one pass that is not timed."""
    height: int
    width: int
    device: str
    threads: int
    """Number of CPU threads."""
    engine: str
    """Name and version of the library that ran the model."""


def measure_cost(model: str | Path, height: int, width: int) -> Cost:
    """Measure a model in a fresh process, with this process's number of threads, on CUDA if available.

    Args:
        model: Model folder or hub name.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.

    Raises:
        CCSegformerError: The process failed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    command = [sys.executable, "-m", __name__, str(model), "--height", str(height), "--width", str(width)]
    command += ["--device", device, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        killed = "the process was killed, probably for lack of memory"
        reason = (done.stderr.strip().splitlines() or [killed])[-1]
        raise CCSegformerError(f"{model}: the cost at {height} x {width} could not be measured: {reason}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def count_flops(model: nn.Module, height: int, width: int) -> int:
    """Count the floating-point operations of one forward pass of one image; a multiply-add counts as 2.

    Convolutions, matrix products and attention are counted; additions, norms, activations and resizing are
    not.
    """
    model = copy.deepcopy(model).to("meta")  # only shapes matter
    pixels = torch.zeros(_image_shape(model, height, width), device="meta")
    operators = (torch.ops.ccsegformer.fused_criss_cross, torch.ops.ccsegformer.flash_criss_cross)
    formulas = dict.fromkeys(operators, _criss_cross_flops)
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with evaluation_mode(model), torch.inference_mode(), counter:
        model(pixels)
    return counter.get_total_flops()


def _criss_cross_flops(query_shape: tuple[int, ...], *_: object, **__: object) -> int:
    """Count the scores and weighted sums over H + W keys, in a row pass and a column pass."""
    batch, heads, height, width, head_dim = query_shape
    return 2 * 2 * batch * heads * height * width * (height + width) * head_dim


def _measure(model: nn.Module, height: int, width: int, device: str) -> Cost:
    """Measure in this process; the memory figure is right only in a fresh one."""
    model = model.to(device)
    shape = _image_shape(model, height, width)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    engine = open_engine(model)
    engine(pixels[..., :64, :64])  # loads libraries and starts threads, which must not count
    free_at_once()
    peak = peak_memory(lambda: engine(pixels), device)
    times: list[float] = []
    while sum(times) < MEASURED_SECONDS or len(times) < FEWEST_PASSES:
        times.append(_time_pass(engine, pixels))
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=count_flops(model, height, width) / GIGA,
        peak_memory_mib=peak / MEBIBYTE,
        images_per_second=1 / statistics.median(times),
        height=height,
        width=width,
        device=device,
        threads=torch.get_num_threads(),
        engine=engine.library,
    )


def _image_shape(model: nn.Module, height: int, width: int) -> tuple[int, int, int, int]:
    config: Any = model.config
    return 1, config.num_channels, height, width


def _time_pass(engine: Engine, pixels: Tensor) -> float:
    start = time.perf_counter()
    engine(pixels)
    if pixels.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print the cost of a model as one line of JSON."""
    from ccsegformer.models import load_trained

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model")
    parser.add_argument("--height", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        model = load_trained(options.model)
    except CCSegformerError as error:
        sys.exit(str(error))
    cost = _measure(model, options.height, options.width, options.device)
    print(json.dumps(dataclasses.asdict(cost)))


if __name__ == "__main__":
    main()
