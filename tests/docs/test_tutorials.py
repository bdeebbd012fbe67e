"""The tutorials do what they say: every block is run in order, and its output is what the page shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
PAGES = sorted(TUTORIALS.glob("*.md"))
BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "--- block "


def test_there_are_five() -> None:
    assert [page.stem for page in PAGES] == ["archive", "convert", "own-masks", "photographs", "scenes"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(page.read_text())
    script = "import subprocess as _subprocess\n"
    for number, (kind, text) in enumerate(blocks):
        script += f"print({MARK + str(number)!r}, flush=True)\n"
        if kind == "python":
            script += text
        elif kind == "sh":
            script += f"_subprocess.run(['bash', '-euo', 'pipefail', '-c', {text!r}], check=True)\n"
    printed = run(script, tmp_path).split(MARK)[1:]
    before = ""
    for (kind, text), own in zip(blocks, printed, strict=True):
        if kind == "text" and before:  # text before the first command is not its output
            assert re.search(as_pattern(text), before), f"{page.name} shows:\n{text}but prints:\n{before}"
        before = before if kind == "text" else own.partition("\n")[2]


def as_pattern(shown: str) -> str:
    """Return a pattern for output in which `...` stands for anything."""
    return r"[\s\S]*?".join(re.escape(part.strip()) for part in shown.split("..."))


def run(script: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-u", "-c", script],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(TUTORIALS / "first_minutes.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "strip the outputs"
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2
