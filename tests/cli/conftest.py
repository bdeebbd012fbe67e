"""Fixtures that run the command line in this process, and a recipe that trains in seconds."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from ccsegformer.cli import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `ccsegformer ARGUMENTS` in this process."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ccsegformer", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    content = {
        "transforms": [{"name": "random_crop", "probability": 1.0, "sizes": [32]}],
        "training": {"steps": 2, "batch_size": 2, "workers": 0},
        "optimizer": {"name": "adamw", "learning_rate": 0.001},
    }
    path.write_text(yaml.safe_dump(content))
    return path
