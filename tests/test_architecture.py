"""Import order of the modules, unique names, and what importing the package loads."""

import ast
import subprocess
import symtable
import sys
from collections import defaultdict
from pathlib import Path

import ccsegformer

PACKAGE = Path(ccsegformer.__file__).parent
LAYERS = (
    *("errors", "files", "config", "ops", "models", "data", "raster", "sources", "labelling"),
    *("evaluation", "publishing", "training", "conversion", "report", "export", "archives", "lab", "app"),
    "cli",
)


def imports_of(path: Path) -> set[str]:
    """Return the layers of the package that a module imports, at any level of indentation."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ccsegformer.")}
    return found & set(LAYERS)


def test_modules_import_earlier_layers_only() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in LAYERS]
    assert len(modules) > 20
    for path in modules:
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert layer in LAYERS, f"{path}: not in LAYERS"
        later = {other for other in imports_of(path) if LAYERS.index(other) > LAYERS.index(layer)}
        assert not later, f"{path} imports {', '.join(sorted(later))}, which comes after {layer} in LAYERS"


def test_data_never_imports_models() -> None:
    for path in (PACKAGE / "data").rglob("*.py"):
        assert "models" not in imports_of(path), path


def names_defined_in(path: Path) -> set[str]:
    """Return the top-level functions, classes and variables of a module, without imports, `_` and dunders."""
    symbols = symtable.symtable(path.read_text(), str(path), "exec").get_symbols()
    names = {symbol.get_name() for symbol in symbols if symbol.is_assigned() and not symbol.is_imported()}
    return {name for name in names if name != "_" and not name.startswith("__")}


def may_share(name: str, path: Path) -> bool:
    """Return whether a module may define a name that another one defines."""
    folder = str(path.parent)
    return (
        name in ("main", "app")
        or (folder == "cli" and name == path.stem)  # a command named as the function it runs
        or (folder == "lab/benchmark" and name in ("prepare", "truth"))  # one for each benchmark
    )


def test_no_top_level_name_stands_in_two_files() -> None:
    homes = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        for name in names_defined_in(path):
            if not may_share(name, place):
                homes[name].append(str(place))
    assert "open_raster" in homes and "GDAL_OPTIONS" in homes
    twice = [f"{name}: {', '.join(places)}" for name, places in sorted(homes.items()) if len(places) > 1]
    assert not twice, "defined in more than one file:\n" + "\n".join(twice)


def test_importing_the_package_loads_no_heavy_library() -> None:
    script = "import ccsegformer, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    heavy = {"torch", "transformers", "rasterio", "triton", "matplotlib", "gradio", "PIL"}
    assert not heavy & set(loaded.split())


def test_every_public_name_can_be_imported() -> None:
    assert len(ccsegformer.__all__) == len(set(ccsegformer.__all__)) <= 13
    for name in ccsegformer.__all__:
        assert getattr(ccsegformer, name) is not None
    assert set(ccsegformer.__all__) <= set(dir(ccsegformer))


def test_the_changelog_has_the_version() -> None:
    changelog = (PACKAGE.parents[1] / "CHANGELOG.md").read_text()
    assert f"## {ccsegformer.__version__}" in changelog
