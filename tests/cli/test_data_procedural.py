"""`ccsegformer data procedural`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]  # see conftest


def test_scenes_are_written_once(run: Run, tmp_path: Path) -> None:
    arguments = ["data", "procedural", "--output", tmp_path / "scenes", "--size", 128]
    counts = ["--training", 2, "--validation", 1]
    done = run(*arguments, *counts)
    assert done.code == 0, done.err
    assert (
        done.out.strip() == f"{tmp_path / 'scenes'}: 2 training and 1 validation scenes of 128 x 128 pixels"
    )
    assert len(list((tmp_path / "scenes").glob("*/*.tif"))) == 6

    for given, named in [
        ([*arguments, *counts], "scenes: "),
        (
            ["data", "procedural", "--output", tmp_path / "other", "--size", 64],
            "size",
        ),
    ]:
        refused = run(*given)
        assert refused.code == 1 and named in refused.err
        assert len([line for line in refused.err.splitlines() if line.strip()]) == 1
    assert "data procedural --output" in run("data", "procedural", "--help").out
