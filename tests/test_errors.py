"""A package that is not installed ends in one line that names the extra."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import ccsegformer
from ccsegformer import cli
from ccsegformer.errors import EXTRA_OF, MissingExtraError, optional_imports
from ccsegformer.sources import open_dataset

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def test_the_table_is_that_of_the_extras() -> None:
    extras = PYPROJECT["optional-dependencies"]
    listed = {
        re.split(r"\[|>=", requirement)[0].replace("-", "_"): extra
        for extra in ("app", "train", "geo", "lab", "export", "archive", "ray")
        for requirement in extras[extra]
        if not requirement.startswith("ccsegformer[")
    }
    assert listed == EXTRA_OF
    assert not {requirement.partition(">=")[0] for requirement in PYPROJECT["dependencies"]} & EXTRA_OF.keys()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(MissingExtraError) as caught, optional_imports("map.gpkg"):
        import shapely.geometry  # noqa: F401
    message = "map.gpkg needs shapely, which is not installed: pip install 'ccsegformer[geo]'"
    assert str(caught.value) == message


def test_other_missing_modules_stay_what_they_are() -> None:
    with pytest.raises(ModuleNotFoundError) as caught, optional_imports("a test"):
        import ccsegformer.no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(caught.value, MissingExtraError)


def test_a_name_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ccsegformer.lab.comparison", "ccsegformer.lab.cost", "ccsegformer.lab.memory"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(MissingExtraError, match=r"^ccsegformer\.compare needs psutil, .*\[lab\]'$"):
        _ = ccsegformer.compare


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setattr(sys, "argv", ["ccsegformer", "train", "recipe.yaml", "--output", "run"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    expected = "this command needs accelerate, which is not installed: pip install 'ccsegformer[train]'"
    assert capsys.readouterr().err == f"ccsegformer: error: {expected}\n"


def test_a_parquet_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "training.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=rf"^{tmp_path} needs datasets, .*\[train\]'$"):
        open_dataset(tmp_path, "training")
