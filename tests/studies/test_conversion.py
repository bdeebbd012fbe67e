"""The study of conversions: teachers are converted to each layout, and the table compares them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccsegformer.models import configuration_ccsegformer
from studies.conversion import __main__ as study

RECIPE = Path(__file__).parents[2] / "recipes" / "from_scratch.yaml"


def labelled_images(root: Path) -> Path:
    """Write 20 images of two colours, each a class, and one to score on."""
    generator = np.random.default_rng(0)
    for index in range(21):
        split = "training" if index else "validation"
        mask = np.zeros((48, 48), np.uint8)
        mask[:, generator.integers(8, 40) :] = 1
        for kind, pixels in (
            ("images", np.array([[200, 60, 60], [40, 160, 60]], np.uint8)[mask]),
            ("annotations", mask),
        ):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / split / f"{index}.png")
    (root / "classes.json").write_text(json.dumps({"names": ["red", "green"], "ignore_index": 255}))
    return root


def test_a_teacher_is_converted_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configuration_ccsegformer._MIT, "b0", ((8, 16, 40, 64), (1, 1, 1, 1), 16))
    name = "none in all stages"
    monkeypatch.setattr(study, "LAYOUTS", {name: study.LAYOUTS[name]})
    data = labelled_images(tmp_path / "data")
    command = ["--data", str(data), "--recipe", str(RECIPE), "--output", str(tmp_path / "out")]
    command += ["--set", "training.epochs=0.1", "--set", "schedule.warmup_steps=0", "--seeds", "3"]
    command += ["--size", "32", "--steps", "2"]
    study.main(command)
    [record] = json.loads((tmp_path / "out" / "results.json").read_text())["records"][name]
    assert record["source"].endswith("teacher-3") and record["seed"] == 3
    title, _, teacher, row = (tmp_path / "out" / "results.md").read_text().splitlines()
    assert title.startswith("| mean IoU, 1 seeds |")
    assert f"{record['scores']['teacher']:.3f}" in teacher
    assert f"{record['scores']['student']:.3f} | {record['scores']['difference']:.3f} |" in row
    assert " – | – | – |" in row  # the control has no attention to fit
