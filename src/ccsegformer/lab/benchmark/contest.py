"""Contenders in turn: times, peak memory, and whether their results agree."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from ccsegformer.errors import CCSegformerError

TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Of a result: its error's root mean square over that of what it is compared with."""

KINK = 1e-3
"""The least of a model's gradients: an activation within rounding of 0 lies on either side of a ReLU's kink,
and a few of them have changed the gradients of eight images by 3e-4."""


class Contender:
    """A worker process, from `with` to its end.

    Args:
        specification: as `worker` takes it.
        cache: a folder for what it would keep in the user's: what another version compiled is not measured.
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

    Peak memory is what a run needs for intermediate and final results, beyond the weights, the input and the
    compiled program. PyTorch gives it back after every run, and it is measured in one of the last. OpenVINO
    and ONNX Runtime keep it for the next run, and it is measured in the first, from where all is loaded.

    Returns:
        For each `seconds` (one a round), `peak_bytes`, `amounts` (`worker.Work`) and `results`, the path of a
        safetensors file in `folder`; or `failure`, one line.
    """
    found: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in specifications}
    with ExitStack() as stack:
        running: dict[str, Contender] = {}
        for name, specification in specifications.items():
            contender = stack.enter_context(Contender(specification, folder / "cache"))
            try:
                contender.started()
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
    """Keep one core busy meanwhile, by a single thread of this process's own priority."""
    loop = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(10**5))"
    busy = subprocess.Popen([sys.executable, "-c", loop, str(os.getpid())])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def measure_limits(dtype: str, device: str, threads: int) -> dict[str, float]:
    """The machine's own limits: operations, bytes and exponentials a second, the best of five.

    Of matrix products the better of PyTorch's and, where it is installed, OpenVINO's.
    """
    from ccsegformer.lab.benchmark import runtimes
    from ccsegformer.lab.benchmark.limits import WHATS

    common = {"kind": "limits", "dtype": dtype, "device": device, "threads": threads}
    specifications = {what: {**common, "what": what} for what in WHATS}
    if device == "cpu" and dtype in runtimes.HINTS and "OpenVINO" not in runtimes.missing():
        specifications["OpenVINO"] = {**common, "what": "matrix product", "runtime": "openvino"}
    with tempfile.TemporaryDirectory() as folder:
        found = contest(specifications, 5, Path(folder))
    limits: dict[str, float] = {}
    for row in found.values():
        if "failure" in row:
            raise CCSegformerError(f"the machine's limits: {row['failure']}")
        [(what, amount)] = row["amounts"].items()
        limits[what] = max(limits.get(what, 0), amount / min(row["seconds"]))
    return limits


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
