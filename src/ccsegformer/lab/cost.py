"""What one inference costs: parameters, floating-point operations, peak memory and time.

Peak memory means little in a process that has trained a model, so everything is measured in a fresh one:
`measure_cost` starts `python -m ccsegformer.lab.cost MODEL --height H --width W`, which prints JSON.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ccsegformer.ops  # registers the operators that are counted below  # noqa: F401
from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.memory import free_at_once, peak_memory
from ccsegformer.labelling.engine import evaluation_mode, open_engine

MEBIBYTE = 2**20
GIGA = 10**9
MEASURED_SECONDS = 3
FEWEST_PASSES = 5


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one float32 forward pass of one (bands, height, width) image, logits not resized."""

    parameters: int
    gflops: float
    """10^9 floating-point operations; a multiply-add is 2 of them (many papers count it once)."""
    peak_memory_mib: float
    """What the first pass of that size needs beyond the open engine. CPU: resident memory, which repeats to
    about a tenth, with what the engine compiles; CUDA: allocated memory."""
    images_per_second: float
    """From the median time of the passes of three seconds (at least five), after one that is not timed."""
    height: int
    width: int
    device: str
    threads: int
    """CPU threads."""
    engine: str
    """What ran the model, with its version."""


def measure_cost(model: str | Path, height: int, width: int, *, device: str | None = None) -> Cost:
    """Measure a model folder (or hub name) in a fresh process, with this process's number of threads.

    `device` is "cuda" where there is a GPU, else "cpu". Raises CCSegformerError when the process fails.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    command = [sys.executable, "-m", __name__, str(model), "--height", str(height), "--width", str(width)]
    command += ["--device", device, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed, perhaps for want of memory"])[-1]
        raise CCSegformerError(f"{model}: its cost at {height} x {width} could not be measured: {reason}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def count_flops(model: nn.Module, height: int, width: int) -> int:
    """Floating-point operations of one forward pass of one image, a multiply-add counted as 2.

    Convolutions, matrix products and attention are counted; sums, norms, activations and resizing are not.
    """
    model = copy.deepcopy(model).to("meta")  # shapes are enough
    pixels = torch.zeros(1, _bands(model), height, width, device="meta")
    operators = (torch.ops.ccsegformer.fused_criss_cross, torch.ops.ccsegformer.flash_criss_cross)
    formulas = dict.fromkeys(operators, _criss_cross_flops)
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with evaluation_mode(model), torch.inference_mode(), counter:
        model(pixels)
    return counter.get_total_flops()


def _criss_cross_flops(query_shape: tuple[int, ...], *_: object, **__: object) -> int:
    """Scores and weighted sums over H + W keys: the row pass and the column pass."""
    batch, heads, height, width, head_dim = query_shape
    return 2 * 2 * batch * heads * height * width * (height + width) * head_dim


def _measure(model: nn.Module, height: int, width: int, device: str) -> Cost:
    """The measuring itself; the memory figure is right only in a process that has done little else."""
    model = model.to(device)
    shape = (1, _bands(model), height, width)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    engine = open_engine(model)
    engine(pixels[..., :64, :64])  # loads libraries and makes thread pools, which are not the model's
    free_at_once()
    peak = peak_memory(lambda: engine(pixels), device)
    times: list[float] = []
    while sum(times) < MEASURED_SECONDS or len(times) < FEWEST_PASSES:
        times.append(_seconds(engine, pixels))
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


def _bands(model: nn.Module) -> int:
    return getattr(getattr(model, "config", None), "num_channels", 3)


def _seconds(model: Callable[[Tensor], object], pixels: Tensor) -> float:
    start = time.perf_counter()
    model(pixels)
    if pixels.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print the cost of one model as a line of JSON."""
    from ccsegformer.models import load_trained

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model")
    parser.add_argument("--height", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
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
