"""The study of cost: a whole run on tiny scenes."""

import json
from pathlib import Path

import pytest

from ccsegformer.models import configuration_ccsegformer
from ccsegformer.training.recipe import load_recipe
from studies.equal_cost import __main__ as study


def test_a_run_trains_scores_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configuration_ccsegformer._MIT, "b0", ((8, 16, 40, 64), (1, 1, 1, 1), 16))
    monkeypatch.setattr(study, "cost", lambda network, folder, side: {"gflops": float(side), "seconds": 0.2})
    small = [*("--output", str(tmp_path)), *("--steps", "1"), *("--scene", "128"), *("--scenes", "1")]
    command = [*small, *("--seeds", "0", "1"), *("--windows", "128", "64"), *("--only", "b0-none")]
    study.main(command)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["size"], row["attention"], row["window"]) for row in rows] == [
        ("b0", "none", 128),
        ("b0", "none", 64),
    ]
    assert load_recipe(tmp_path / "b0-none-1" / "recipe.yaml").training.seed == 1
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[2].startswith("| B0, none | 64 | 64 | 0.20 | ")  # the cheapest first
    weights = (tmp_path / "b0-none-0" / "model.safetensors").stat().st_mtime_ns
    study.main(command)
    assert (tmp_path / "b0-none-0" / "model.safetensors").stat().st_mtime_ns == weights
