"""Every command that a page shows exists, with the options that it shows."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from ccsegformer.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/tutorials").glob("*.md")),
]
BLOCK = re.compile(r"^```(?:sh|console)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$? ?(?:python -m )?ccsegformer .*", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for block in BLOCK.findall(page.read_text()):
        for line in COMMAND.findall(block.replace("\\\n", " ")):
            assert unknown_words(line) == [], line


def unknown_words(line: str) -> list[str]:
    """Return the command or the options of a line that do not exist."""
    command: Any = typer.main.get_command(app)
    _, _, arguments = line.partition("ccsegformer ")
    words = shlex.split(arguments, comments=True)
    while words and hasattr(command, "commands"):
        if words[0].startswith("--"):
            break
        if words[0] not in command.commands:
            return words[:1]
        command = command.commands[words.pop(0)]
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [option for option in options if option not in known | {"--help"}]


def test_a_wrong_option_is_found() -> None:
    assert unknown_words("ccsegformer predict runs/mine a.png --outptu x") == ["--outptu"]
    assert unknown_words("ccsegformer benchmark modle") == ["modle"]
