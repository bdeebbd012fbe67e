"""Serve one contender in its own process: orders arrive on stdin, answers leave as lines of JSON.

`python -m ccsegformer.lab.benchmark.worker SPECIFICATION` takes the arguments of `attention.prepare`,
`model.prepare` or `limits.prepare` as JSON, and in addition `kind` and `threads`.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor

from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.memory import free_at_once, peak_memory, trim

LONG = 10
"""Seconds from which a run is not repeated, neither to warm up nor to take a median."""

TURN = 0.3
"""Shortest time to measure, in seconds; shorter runs are repeated until it is reached."""


@dataclass(frozen=True)
class Work:
    """Work to time, with its results for checking."""

    run: Callable[[], object]
    results: Callable[[], dict[str, Tensor]]
    """Returns float tensors, to be compared with those of the same names from other contenders."""
    amounts: dict[str, int]
    """Amount of work in one run, by limit: floating-point operations in matrix products (a multiply-add
    counts as 2), bytes read from and written to memory, exponentials."""
    release: Callable[[], None] | None = None
    """Frees the memory that runs keep for the next one; None if they keep none."""
    on_loaded: Callable[[Callable[[], None]], None] = lambda _: None
    """Takes a callback to call during the first run, after everything but buffers is allocated."""


def serve(work: Work, device: str, orders: Iterable[str], answer: Callable[[object], None]) -> None:
    """Answer the orders "time", "memory" and "results FILE"; "results" must come first."""
    answer(work.amounts)
    last, peak = 0.0, 0
    for line in orders:
        order, *rest = line.rstrip("\n").split(" ", 1)
        if order == "time":
            last = _time_turn(work, device, warm_up=work.release is not None or last < LONG)
            answer(last)
        elif order == "memory":
            answer(peak if work.release else _median_peak(work, device))
        elif order == "results":  # compiles, loads libraries and starts threads
            start = time.perf_counter()
            found, peak = _first_run(work, device)
            last = time.perf_counter() - start
            save_file({name: each.detach().cpu().contiguous() for name, each in found.items()}, rest[0])
            answer(None)
        _release(work)


def _first_run(work: Work, device: str) -> tuple[dict[str, Tensor], int]:
    """Return the results of the first run and its peak memory, for work that keeps memory."""
    found: dict[str, Tensor] = {}
    peak = peak_memory(lambda: found.update(work.results()), device, work.on_loaded)
    return found, peak


def _time_turn(work: Work, device: str, warm_up: bool) -> float:
    """Return the mean time of a run in seconds.

    Args:
        warm_up: Run once before timing, because other contenders used the caches and buffers were freed.
    """
    if warm_up:
        work.run()
    total, runs = 0.0, 0
    while total < TURN:
        total += _time_run(work.run, device)
        runs += 1
    return total / runs


def _release(work: Work) -> None:
    """Free memory kept between runs, for the other contenders, which are all alive."""
    if work.release:
        work.release()
        trim()


def _median_peak(work: Work, device: str) -> float:
    """Return the peak memory of a run in bytes, for work that keeps no memory and is already compiled."""
    free_at_once()
    start = time.perf_counter()
    peaks = [peak_memory(work.run, device)]
    if time.perf_counter() - start < LONG:  # long runs are large, and their peak hardly varies
        peaks += [peak_memory(work.run, device) for _ in range(2)]
    return median(peaks)


def _time_run(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _short_message(error: Exception) -> str:
    """Return one line: the first, or for OpenVINO's traces the last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].lstrip("- ") if lines[0].startswith("Exception from ") else lines[0]


def main() -> None:
    """Prepare one contender and serve orders from stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what libraries print out of the answers
    specification = json.loads(sys.argv[1])
    device = specification["device"]
    torch.set_num_threads(specification.pop("threads"))

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        # Imports only the module needed: attention does not need transformers.
        kind = importlib.import_module(f"ccsegformer.lab.benchmark.{specification.pop('kind')}")
        work = kind.prepare(**specification)
        serve(work, device, sys.stdin, answer)
    except (CCSegformerError, RuntimeError, MemoryError) as error:
        answer({"error": _short_message(error)})


if __name__ == "__main__":
    main()
