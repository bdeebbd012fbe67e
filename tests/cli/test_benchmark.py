import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccsegformer.lab.benchmark import contest, runtimes, tables

Run = Callable[..., Any]


def test_command_writes_its_three_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"matrix product": 1e9, "copy": 1e9, "exponentials": 1e9}
    monkeypatch.setattr(contest, "measure_limits", lambda *_: known)
    done = run("benchmark", "attention", "--size", "8", "--rounds", "1", "--output", tmp_path / "out")
    assert "### 8 x 8 positions" in done.out
    found = json.loads((tmp_path / "out" / "attention-inference-float32-batch-1.json").read_text())
    assert found["limits"] == known
    [[textbook, flash]] = found["tables"].values()
    assert (textbook["name"], flash["against"]) == ("textbook formula", "textbook formula")
    assert "### 8 x 8" in (tmp_path / "out" / "attention-inference-float32-batch-1.md").read_text()
    assert "<svg" in (tmp_path / "out" / "attention-inference-float32-batch-1.svg").read_text()


def test_threads_and_a_busy_process_are_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def measure(specifications: Any, *_: Any) -> list[tables.Row]:
        asked.append(specifications)
        return [tables.Row(name, 64, 64, failure="not run") for name in specifications]

    known = {"matrix product": 1e9, "copy": 1e9, "exponentials": 1e9}
    monkeypatch.setattr(contest, "measure_limits", lambda *_: known)
    monkeypatch.setattr(tables, "measure", measure)
    monkeypatch.setattr(runtimes, "missing", lambda: {"OpenVINO": "openvino"})
    options = ("--size", "64", "--attention", "efficient", "--threads", "3", "--busy", "--output", tmp_path)
    done = run("benchmark", "model", *options)
    heading = "SegFormer-B0, 3 threads, beside a busy process, 64 x 64"
    assert f"### {heading}" in done.out
    assert "Without OpenVINO: openvino is not installed." in done.out
    found = json.loads((tmp_path / "model-inference-float32-batch-1-threads-3-busy.json").read_text())
    assert list(found["tables"]) == [heading]
    assert (found["settings"]["threads"], found["settings"]["busy"]) == (3, True)
    assert found["settings"]["what"].endswith("forward, beside a busy process")
    assert {each["threads"] for each in asked[0].values()} == {3}


def test_bad_usage_is_refused(run: Run) -> None:
    assert run("benchmark", "model", "--variant", "b9").code == 2
    assert run("benchmark", "attention", "--size", "0").code == 2
    assert run("benchmark", "model", "--threads", "0").code == 2
    assert run("benchmark").code == 2
