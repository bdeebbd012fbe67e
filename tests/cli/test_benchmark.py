import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccsegformer.benchmark import contest

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


def test_bad_usage_is_refused(run: Run) -> None:
    assert run("benchmark", "model", "--variant", "b9").code == 2
    assert run("benchmark", "attention", "--size", "0").code == 2
    assert run("benchmark").code == 2
