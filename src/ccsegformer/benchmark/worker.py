"""One contender, in a process of its own: orders come in as words on stdin, answers go out as JSON lines.

`python -m ccsegformer.benchmark.worker SPECIFICATION`, the specification as JSON: what `model.prepare` or
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

from ccsegformer.evaluation.memory import free_at_once, peak_memory

LONG = 10  # seconds


@dataclass(frozen=True)
class Work:
    """What is timed, and what shows that it was done right."""

    run: Callable[[], object]
    results: Callable[[], dict[str, Tensor]]
    """Float tensors, to be compared with another contender's of the same names."""
    amounts: dict[str, int]
    """Of one run, by the limit of the machine that it is held against: floating-point operations of matrix
    products (a multiply-add is 2), bytes that have to come from memory or go there, exponentials."""


def serve(work: Work, device: str, answer: Callable[[object], None]) -> None:
    """Answer the orders on stdin until it ends."""
    answer(work.amounts)
    for line in sys.stdin:
        order, *rest = line.rstrip("\n").split(" ", 1)
        if order == "time":
            answer(_seconds(work.run, device))
        elif order == "memory":
            free_at_once()
            start = time.perf_counter()
            peaks = [peak_memory(work.run, device)]
            if time.perf_counter() - start < LONG:  # a long run is a large one, whose peak hardly varies
                peaks += [peak_memory(work.run, device) for _ in range(2)]
            answer(median(peaks))
        elif order == "results":  # asked for first: it compiles, loads libraries and makes thread pools
            found = {name: tensor.detach().cpu().contiguous() for name, tensor in work.results().items()}
            answer(save_file(found, rest[0]))


def _seconds(run: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


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
        kind = importlib.import_module(f"ccsegformer.benchmark.{specification.pop('kind')}")
        work = kind.prepare(**specification)
        serve(work, device, answer)
    except (RuntimeError, MemoryError) as error:
        answer({"error": str(error).strip().splitlines()[0]})


if __name__ == "__main__":
    main()
