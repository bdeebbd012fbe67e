"""Run contenders in turn, each in its own process, and compare their results."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.benchmark import runtimes
from ccsegformer.lab.benchmark.limits import LIMIT_KINDS

ERROR_TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest root mean square error relative to the result checked against, by dtype."""

GRADIENT_TOLERANCE = 1e-3
"""Smallest tolerance for gradients of a model. Rounding can flip ReLUs whose input is almost 0; on eight
images this has changed gradients by 3e-4."""


class Contender:
    """Worker process that lives as long as its `with` block.

    Args:
        specification: Specification for `worker`.
        cache: Folder to use instead of the user's cache, so that no older compiled model is measured.
    """

    def __init__(self, specification: dict[str, Any], cache: Path) -> None:
        command = [sys.executable, "-m", "ccsegformer.lab.benchmark.worker", json.dumps(specification)]
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, env=environment, **pipes)  # type: ignore[call-overload]
        self.amounts: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_until_ready(self) -> None:
        """Wait until the work is prepared."""
        self.amounts = self._answer()

    def ask(self, order: str) -> Any:
        """Send an order of `worker.serve` and return the answer.

        Raises:
            CCSegformerError: The process failed or ended; the message is its own.
        """
        try:
            self._process.stdin.write(f"{order}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is read below
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        if isinstance(answer, dict) and "error" in answer:
            raise CCSegformerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        said = self._process.communicate()[1].strip().splitlines()
        killed = "the process was killed, probably for lack of memory"
        return said[-1] if said and self._process.returncode > 0 else killed


def contest(
    specifications: dict[str, dict[str, Any]], rounds: int, folder: Path
) -> dict[str, dict[str, Any]]:
    """Return the times, peak memory and results of each contender by name.

    Peak memory is the memory for intermediate and final results, without weights, input and compiled program.
    PyTorch frees it after every run, so it is measured at the end. OpenVINO and ONNX Runtime keep it for the
    next run, so it is measured during the first run, after everything is loaded.

    Args:
        specifications: Specifications for `worker`, by name.
        rounds: Number of timings of each contender.
        folder: Folder for results and caches.

    Returns:
        By name, either `seconds` (one per round), `peak_bytes`, `amounts` (see `worker.Work`) and `results`
        (a safetensors file in `folder`), or `failure` (one line).
    """
    found: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in specifications}
    with ExitStack() as stack:
        running: dict[str, Contender] = {}
        for name, specification in specifications.items():
            contender = stack.enter_context(Contender(specification, folder / "cache"))
            try:
                contender.wait_until_ready()
                path = folder / f"{len(running)}.safetensors"
                contender.ask(f"results {path}")
            except CCSegformerError as error:
                found[name] = {"failure": str(error)}
                continue
            running[name] = contender
            found[name] |= {"amounts": contender.amounts, "results": path}
        for turn in range(rounds + 1):
            for name, contender in list(running.items()):
                try:
                    if turn < rounds:
                        found[name]["seconds"].append(contender.ask("time"))
                    else:
                        found[name]["peak_bytes"] = contender.ask("memory")
                except CCSegformerError as error:
                    found[name] = {"failure": str(error)}
                    del running[name]
    return found


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy with a single-threaded process of the same priority."""
    loop = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(10**5))"
    busy = subprocess.Popen([sys.executable, "-c", loop, str(os.getpid())])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def measure_limits(dtype: str, device: str, threads: int) -> dict[str, float]:
    """Measure the machine's limits per second, the best of five: operations, bytes and exponentials.

    Matrix products run in PyTorch and, if it is installed, in OpenVINO.
    """
    has_openvino = "OpenVINO" not in runtimes.missing_packages()
    with tempfile.TemporaryDirectory() as folder:
        found = contest(limit_specifications(dtype, device, threads, has_openvino), 5, Path(folder))
    return best_limits(found.values())


def limit_specifications(
    dtype: str, device: str, threads: int, has_openvino: bool
) -> dict[str, dict[str, Any]]:
    """Return the contenders that measure the machine's limits."""
    common = {"kind": "limits", "dtype": dtype, "device": device, "threads": threads}
    specifications = {what: {**common, "what": what} for what in LIMIT_KINDS}
    if device == "cpu" and dtype in runtimes.HINTS and has_openvino:
        specifications["OpenVINO"] = {**common, "what": "matrix product", "runtime": "openvino"}
    return specifications


def best_limits(found: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return the highest rate per second of each kind of work."""
    limits: dict[str, float] = {}
    for row in found:
        if "failure" in row:
            raise CCSegformerError(f"the machine's limits could not be measured: {row['failure']}")
        [(what, amount)] = row["amounts"].items()
        limits[what] = max(limits.get(what, 0), amount / min(row["seconds"]))
    return limits


def disagreement(path: Path, reference: Path) -> float:
    """Return the largest relative error of the tensors in a file, compared with a reference file."""
    found, expected = load_file(path), load_file(reference)
    if found.keys() != expected.keys():
        raise CCSegformerError(f"results have different names: {sorted(found)} and {sorted(expected)}")
    return max(_relative_error(found[name], expected[name]) for name in expected)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    return float(error) if torch.isfinite(error) else float("inf")
