"""Contenders in turn: times, peak memory, and whether their results agree."""

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from ccsegformer.errors import CCSegformerError

TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Of a result: its error's root mean square over that of what it is compared with."""


class Contender:
    """A worker process, from `with` to its end."""

    def __init__(self, specification: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "ccsegformer.benchmark.worker", json.dumps(specification)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
        self.amounts: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def started(self) -> None:
        """Wait until it is there."""
        self.amounts = self._answer()

    def ask(self, order: str) -> Any:
        """The answer to an order, as `worker.serve` takes them.

        Raises:
            CCSegformerError: the process fails or ends; the message is its own.
        """
        try:
            self._process.stdin.write(f"{order}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # why it ended is read below
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        if isinstance(answer, dict) and "error" in answer:
            raise CCSegformerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        said = self._process.communicate()[1].strip().splitlines()
        killed = "it was killed, perhaps for want of memory"
        return said[-1] if said and self._process.returncode > 0 else killed


def contest(
    specifications: dict[str, dict[str, Any]], rounds: int, folder: Path
) -> dict[str, dict[str, Any]]:
    """Times, memory and results of each contender by name.

    Returns:
        For each `seconds` (one a round), `peak_bytes`, `amounts` (`worker.Work`) and `results`, the path of a
        safetensors file in `folder`; or `failure`, one line.
    """
    found: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in specifications}
    with ExitStack() as stack:
        running: dict[str, Contender] = {}
        for name, specification in specifications.items():
            contender = stack.enter_context(Contender(specification))
            try:
                contender.started()
                path = folder / f"{len(running)}.safetensors"
                contender.ask(f"results {path}")
            except CCSegformerError as error:
                found[name] = {"failure": str(error)}
                continue
            running[name] = contender
            found[name] |= {"amounts": contender.amounts, "results": path}
        for _ in range(rounds):
            for name, contender in running.items():
                found[name]["seconds"].append(contender.ask("time"))
        for name, contender in running.items():
            found[name]["peak_bytes"] = contender.ask("memory")
    return found


def measure_limits(dtype: str, device: str, threads: int) -> dict[str, float]:
    """The machine's own limits: operations, bytes and exponentials a second, the best of five."""
    from ccsegformer.benchmark.limits import WHATS

    common = {"kind": "limits", "dtype": dtype, "device": device, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        found = contest({what: {**common, "what": what} for what in WHATS}, 5, Path(folder))
    return {what: found[what]["amounts"][what] / min(found[what]["seconds"]) for what in WHATS}


def disagreement(path: Path, reference: Path) -> float:
    """The largest error of the results in a file, each relative to the reference of its name."""
    found, expected = load_file(path), load_file(reference)
    if found.keys() != expected.keys():
        raise CCSegformerError(f"results differ in names: {sorted(found)} and {sorted(expected)}")
    return max(_relative_error(found[name], expected[name]) for name in expected)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    return float(error) if torch.isfinite(error) else float("inf")


def best(rows: dict[str, dict[str, Any]], names: list[str]) -> str:
    """The fastest of the named that ran."""
    ran = [name for name in names if "failure" not in rows[name]]
    if not ran:
        raise CCSegformerError(f"{names[0]}: {rows[names[0]]['failure']}")
    return min(ran, key=lambda name: median(rows[name]["seconds"]))
