"""`ccsegformer benchmark`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccsegformer.lab.benchmark import run as benchmark

Run = Callable[..., Any]


def test_the_command_writes_three_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"matrix product": 1e9, "copy": 1e9, "exponentials": 1e9}
    monkeypatch.setattr(benchmark, "measure_limits", lambda *_: known)  # takes long
    done = run("benchmark", "attention", "--size", "8", "--rounds", "1", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert "### 8 x 8 positions" in done.out
    name = tmp_path / "out" / "attention-inference-float32-batch-1"
    found = json.loads(name.with_suffix(".json").read_text())
    assert found["limits"] == known
    [[textbook, flash]] = found["tables"].values()
    assert (textbook["name"], flash["against"]) == ("textbook formula", "textbook formula")
    assert "### 8 x 8" in name.with_suffix(".md").read_text()
    assert "<svg" in name.with_suffix(".svg").read_text()


def test_bad_usage_is_refused(run: Run) -> None:
    assert run("benchmark", "model", "--variant", "b9").code == 2
    assert run("benchmark", "model", "--attention", "axial").code == 2
    assert run("benchmark", "attention", "--size", "0").code == 2
    assert run("benchmark", "model", "--threads", "0").code == 2
    assert run("benchmark").code == 2


def test_a_runtime_that_cannot_train_is_one_line(run: Run) -> None:
    done = run("benchmark", "model", "--training", "--runtime", "openvino")
    assert done.code == 1
    assert done.err.startswith("ccsegformer: error: no contender runs in openvino")
    assert len(done.err.splitlines()) == 1
