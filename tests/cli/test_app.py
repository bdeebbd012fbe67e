"""`ccsegformer app` as a person starts and ends it."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.labelling.test_scene import tiny_model

Run = Callable[..., Any]  # see conftest


def test_a_missing_folder_is_one_line(run: Run, tmp_path: Path) -> None:
    outcome = run("app", "model", "--root", tmp_path / "nowhere")
    assert (
        outcome.code == 1 and outcome.err == f"ccsegformer: error: {tmp_path / 'nowhere'}: no such folder\n"
    )


def test_a_missing_package_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("ccsegformer.app")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    outcome = run("app", "model")
    assert outcome.code == 1 and outcome.err.endswith("pip install 'ccsegformer[app]'\n")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_ended_and_leaves_nothing(tmp_path: Path, end: signal.Signals) -> None:
    tiny_model(num_labels=2).save_pretrained(tmp_path / "model")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "ccsegformer", "app", str(tmp_path / "model"), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address) as page:
            assert b"<title>ccsegformer</title>" in page.read()
        assert list(temporary.glob("ccsegformer-*"))
        process.send_signal(end)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert not list(temporary.glob("ccsegformer-*"))
