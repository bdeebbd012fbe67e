"""The table of engines by window covers every engine and checks their results."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import engines


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the measurement: each specification takes a second, bf16 at 2048 fails; return them."""
    asked: list[dict[str, Any]] = []

    def contest(specifications: dict[str, dict[str, Any]], rounds: int, folder: Path) -> dict[str, Any]:
        [(name, wanted)] = specifications.items()
        asked.append(wanted)
        if wanted["dtype"] == "bfloat16" and wanted["height"] == 2048:
            return {name: {"failure": "it was killed"}}
        off = 1e-3 if name == "openvino fp32" and wanted["height"] == 2048 else 0.0
        save_file({"logits": torch.full((2,), 1 + off)}, folder / "results")
        return {name: {"seconds": [1.0] * rounds, "peak_bytes": 2**21, "results": folder / "results"}}

    monkeypatch.setattr(engines, "contest", contest)
    return asked


def test_every_engine_is_measured_and_checked(
    measured: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "engines.json"
    options = ["--classes", "2", "--attention", "criss_cross", "--window", "1000", "--window", "2048"]
    monkeypatch.setattr("sys.argv", ["engines", *options, "--rounds", "2", "--output", str(output)])
    engines.main()
    assert [(each["runtime"], each["dtype"], each["width"]) for each in measured] == [
        (runtime, dtype, window)
        for window in (1000, 2048)
        for runtime, dtype in (("torch", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"))
    ]
    assert {each["classes"] for each in measured} == {2}
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| torch | criss_cross | 2 | 1000 | 1 | 1 | 2 |"
    assert "disagree" in lines[6]
    assert "killed" in lines[7]
    content = json.loads(output.read_text())
    assert "processor" in content["machine"]
    assert content["settings"]["rounds"] == 2
    where = {"engine": "openvino fp32", "attention": "criss_cross", "classes": 2, "window": 1000}
    assert content["rows"][1] == where | {"seconds": [1.0, 1.0], "peak_mib": 2.0, "error": 0.0}
