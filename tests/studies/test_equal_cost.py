"""The study of cost: a whole run on tiny scenes."""

import json
from pathlib import Path

import pytest

from ccsegformer.config.protocol import EvaluationProtocol
from ccsegformer.data.transforms import RandomResize
from ccsegformer.models import configuration_ccsegformer
from ccsegformer.training.recipe import load_recipe
from studies.equal_cost import __main__ as study


def test_a_run_trains_scores_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configuration_ccsegformer._MIT, "b0", ((8, 16, 40, 64), (1, 1, 1, 1), 16))
    monkeypatch.setattr(study, "gflops", lambda network, side: float(side))
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
    assert lines[2].startswith("| B0, no attention | 64 | 64 | ")  # the cheapest first
    weights = (tmp_path / "b0-none-0" / "model.safetensors").stat().st_mtime_ns
    study.main(command)
    assert (tmp_path / "b0-none-0" / "model.safetensors").stat().st_mtime_ns == weights


def test_cheaper_networks_are_trained_as_they_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(configuration_ccsegformer._MIT, "b0", ((8, 16, 40, 64), (1, 1, 1, 1), 16))
    monkeypatch.setattr(study, "gflops", lambda network, side: float(side))
    sides = []
    evaluate = study.evaluate

    def recorded(model: object, scenes: object, *, protocol: EvaluationProtocol) -> object:
        assert protocol.window is not None
        sides.append((protocol.resize.short_side, protocol.window.size))
        return evaluate(model, scenes, protocol=protocol)

    monkeypatch.setattr(study, "evaluate", recorded)
    names = ["b0-efficient-reduced2", "b0-efficient-scaled0.72"]
    study.main(
        [
            *("--output", str(tmp_path), "--steps", "1", "--scene", "256", "--scenes", "1", "--seeds", "3"),
            *("--windows", "128", "256", "--only", *names),
        ]
    )
    reduced, scaled = (tmp_path / f"{name}-3" for name in names)
    assert json.loads((reduced / "config.json").read_text())["sr_ratios"] == [16, 8, 4, 2]
    resize, _ = load_recipe(scaled / "recipe.yaml").transforms
    assert isinstance(resize, RandomResize)
    assert resize.ratio == (184 / 256, 184 / 256)
    assert sides == [(256, 256), (184, 184)]  # the largest window alone
