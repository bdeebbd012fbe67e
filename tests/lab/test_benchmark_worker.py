"""A worker times what is steady, and knows the memory of what is kept from that of what is made again."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ccsegformer.lab.benchmark import worker


def answers(work: worker.Work, orders: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr("sys.stdin", io.StringIO(orders))
    monkeypatch.setattr(worker, "free_at_once", lambda: None)  # not for the other tests of this process
    found: list[Any] = []
    worker.serve(work, "cpu", found.append)
    return found


def test_a_short_run_is_practised_and_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[None] = []
    work = worker.Work(lambda: ran.append(None), dict, {})
    monkeypatch.setattr(worker, "_seconds", lambda run, _: run() or 0.125)
    assert answers(work, "time\ntime\n", monkeypatch)[1:] == [0.125, 0.125]
    assert len(ran) == 2 * (1 + 3)
    ran.clear()
    monkeypatch.setattr(worker, "_seconds", lambda run, _: run() or 20.0)
    answers(work, "time\ntime\n", monkeypatch)
    assert len(ran) == 2 + 1, "a long run needs no practice once it has run"


def test_memory_that_is_kept_is_measured_in_the_first_run_and_let_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
    monkeypatch.setattr(worker, "_seconds", lambda run, _: run() or 1.0)
    *_, peak = answers(work, f"results {tmp_path / 'it'}\ntime\nmemory\n", monkeypatch)
    assert peak / 2**20 == pytest.approx(8, abs=3)
    assert released == [1, 1, 0]
