"""The documentation site builds without a warning, and holds what it should."""

import subprocess
import sys
from pathlib import Path

import pytest

import ccsegformer
from ccsegformer import conversion, errors, export

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        output / "trees",
    ]
    done = subprocess.run(
        [*map(str, command), str(ROOT / "docs"), str(output / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output / "html"


def test_every_page_is_built_and_the_home_page_is_the_readme(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    assert [page for page in pages if not (site / f"{page}.html").is_file()] == []
    home = (site / "index.html").read_text()
    assert "SegFormer for images that are too large for it." in home
    assert 'href="results.html"' in home


def test_the_references_hold_every_public_name_and_command(site: Path) -> None:
    python = (site / "reference" / "python.html").read_text()
    names = {f"ccsegformer.{name}" for name in ccsegformer.__all__ if name != "CCSegformerError"}
    names |= {f"ccsegformer.errors.{name}" for name in vars(errors) if name.endswith("Error")}
    names |= {"ccsegformer.ops.criss_cross_weights", "ccsegformer.models.load_trained"}
    names |= {f"ccsegformer.conversion.{name}" for name in conversion.__all__}
    names |= {f"ccsegformer.export.{name}" for name in export.__all__ if name != "Format"}
    assert [name for name in sorted(names) if f'id="{name}"' not in python] == []
    commands = (site / "reference" / "commands.html").read_text()
    for command in ("train", "predict", "map", "convert", "export"):
        assert f'id="ccsegformer-{command}"' in commands
        assert f'href="#ccsegformer-{command}"' in commands
    assert (
        commands.count("Score a model at each image's original resolution, and report where it fails.") == 2
    )


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        for attribute in ('src="http', "src='http", 'rel="stylesheet" type="text/css" href="http', "@import"):
            assert attribute not in text, f"{page.name}: {attribute}"


def test_the_notebook_has_its_pictures_and_no_path_of_this_machine(site: Path) -> None:
    page = (site / "tutorials" / "first_minutes.html").read_text()
    assert page.count('<img alt="../_images/') >= 2
    assert "site-packages" not in page


def test_formulas_need_no_script(site: Path) -> None:
    page = (site / "mathematics.html").read_text()
    assert page.count("<math") > 40
    assert "MathJax" not in page
