"""One contender, in a process of its own: orders come in as words on stdin, answers go out as JSON lines.

`python -m ccsegformer.lab.benchmark.worker SPECIFICATION`, the specification as JSON: what `model.prepare` or
`attention.prepare` takes, with `kind`, `device` and `threads`.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from safetensors.torch import save_file
from torch import Tensor

from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.memory import free_at_once, peak_memory, trim

LONG = 10
"""Seconds from which a run is worth no other, for practice or for its median."""

TURN = 0.3
"""Seconds of a turn: a shorter run is repeated, as one of a few milliseconds is a matter of luck."""


@dataclass(frozen=True)
class Work:
    """What is timed, and what shows that it was done right."""

    run: Callable[[], object]
    results: Callable[[], dict[str, Tensor]]
    """Float tensors, to be compared with another contender's of the same names."""
    amounts: dict[str, int]
    """Of one run, by the limit of the machine that it is held against: floating-point operations of matrix
    products (a multiply-add is 2), bytes that have to come from memory or go there, exponentials."""
    release: Callable[[], None] | None = None
    """Gives back the memory that runs keep for the next; None where they keep none."""
    on_loaded: Callable[[Callable[[], None]], None] = lambda _: None
    """Of a work that keeps memory: is given what to call in the first run, where all that is no buffer is
    there."""


def serve(work: Work, device: str, answer: Callable[[object], None]) -> None:
    """Answer the orders on stdin until it ends."""
    answer(work.amounts)
    last, peak = 0.0, 0
    for line in sys.stdin:
        order, *rest = line.rstrip("\n").split(" ", 1)
        if order == "time":
            last = _turn(work, device, practise=work.release is not None or last < LONG)
            answer(last)
        elif order == "memory":
            answer(peak if work.release else _peak(work, device))
        elif order == "results":  # asked for first: it compiles, loads libraries and makes thread pools
            start = time.perf_counter()
            found, peak = _first(work, device)
            last = time.perf_counter() - start
            save_file({name: each.detach().cpu().contiguous() for name, each in found.items()}, rest[0])
            answer(None)
        _let_go(work)


def _first(work: Work, device: str) -> tuple[dict[str, Tensor], int]:
    """The results of the first run, and the bytes that it needs: for a work that keeps memory, its peak."""
    found: dict[str, Tensor] = {}
    peak = peak_memory(lambda: found.update(work.results()), device, work.on_loaded)
    return found, peak


def _turn(work: Work, device: str, practise: bool) -> float:
    """Seconds of a run, the mean of a turn's.

    Args:
        practise: run once before: others had the cache since, and buffers were given back.
    """
    if practise:
        work.run()
    total, runs = 0.0, 0
    while total < TURN:
        total += _seconds(work.run, device)
        runs += 1
    return total / runs


def _let_go(work: Work) -> None:
    """Leave the memory of what is kept between runs to the other contenders, all of which are alive."""
    if work.release:
        work.release()
        trim()


def _peak(work: Work, device: str) -> float:
    """Bytes that each run needs, of a work that keeps no memory: compiling and loading are done by now."""
    free_at_once()
    start = time.perf_counter()
    peaks = [peak_memory(work.run, device)]
    if time.perf_counter() - start < LONG:  # a long run is a large one, whose peak hardly varies
        peaks += [peak_memory(work.run, device) for _ in range(2)]
    return median(peaks)


def _seconds(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _reason(error: Exception) -> str:
    """One line of a message: the first, or of OpenVINO, which tells the way there first, the last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].lstrip("- ") if lines[0].startswith("Exception from ") else lines[0]


def main() -> None:
    """Prepare one contender and serve it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    specification = json.loads(sys.argv[1])
    device = specification["device"]
    torch.set_num_threads(specification.pop("threads"))

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        # Only its own module: attention needs no transformers.
        kind = importlib.import_module(f"ccsegformer.lab.benchmark.{specification.pop('kind')}")
        work = kind.prepare(**specification)
        serve(work, device, answer)
    except (CCSegformerError, RuntimeError, MemoryError) as error:
        answer({"error": _reason(error)})


if __name__ == "__main__":
    main()
