"""A worker repeats short runs, and measures memory that is kept in the first run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ccsegformer.lab.benchmark import worker


def answers(work: worker.Work, *orders: str) -> list[Any]:
    found: list[Any] = []
    worker.serve(work, "cpu", orders, found.append)
    return found


@pytest.mark.parametrize(
    ("seconds", "runs"), [(0.125, 2 * (1 + 3)), (20.0, 2 + 1)], ids=["short", "long runs warm up only once"]
)
def test_short_runs_are_repeated(seconds: float, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ran = [0.0], []

    def run() -> None:
        clock[0] += seconds
        ran.append(None)

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    assert answers(worker.Work(run, dict, {}), "time\n", "time\n")[1:] == pytest.approx([seconds, seconds])
    assert len(ran) == runs


def test_kept_memory_is_measured_in_the_first_run_and_released(tmp_path: Path) -> None:
    kept: list[Tensor] = []
    begin: list[Any] = []
    released: list[int] = []

    def run() -> None:
        if not kept:
            if begin:
                torch.ones(24 * 2**18)
                begin.pop()()
            kept.append(torch.ones(8 * 2**18))

    def results() -> dict[str, Tensor]:
        run()
        return {"it": torch.zeros(1)}

    def release() -> None:
        released.append(len(kept))
        kept.clear()

    work = worker.Work(run, results, {}, release, begin.append)
    *_, peak = answers(work, f"results {tmp_path / 'it'}\n", "memory\n")
    assert peak / 2**20 == pytest.approx(8, abs=3)
    assert released == [1, 0]
