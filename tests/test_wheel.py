"""The wheel, beside its hard dependencies alone: it predicts, and whatever needs an extra says which."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import rasterio
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import EXTRA_OF
from tests.labelling.test_scene import tiny_model

ROOT = Path(__file__).parents[1]
COMPLETING = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # the shell is named instead
TORCH_HAS = {"jinja2"}  # optional here, but a dependency of torch


class Fresh(NamedTuple):
    """A virtual environment of the wheel and its hard dependencies, and a folder with inputs."""

    bin: Path
    folder: Path

    def run(self, program: str, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the folder, undisturbed by this process's own settings."""
        settings = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        settings |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}
        command = [str(self.bin / program), *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.folder, env=settings, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home)
    pip("--python", home / "bin" / "python", "install", wheel)
    (site,) = home.glob("lib/python*/site-packages")
    (installed,) = metadata.distributions(name="ccsegformer", path=[str(site)])
    for distribution in closure(installed):
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():  # several distributions share the folder nvidia/
                (site / name).symlink_to(distribution.locate_file(name))
    return Fresh(home / "bin", write_inputs(tmp_path_factory.mktemp("inputs")))


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run([*command, "--no-deps", "--no-index"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def closure(distribution: metadata.Distribution) -> Iterator[metadata.Distribution]:
    """Yield what a distribution requires without extras, directly or not, as installed for these tests."""
    waiting, seen = requirements(distribution, set()), set()
    while waiting:
        requirement = waiting.pop()
        wanted = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if wanted not in seen:
            seen.add(wanted)
            found = metadata.distribution(requirement.name)
            yield found
            waiting += requirements(found, requirement.extras)


def requirements(distribution: metadata.Distribution, extras: set[str]) -> list[Requirement]:
    found = map(Requirement, distribution.requires or ())
    return [
        each
        for each in found
        if not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in extras | {""})
    ]


def write_inputs(folder: Path) -> Path:
    """Write a model, a photograph, a scene and a data set of one image."""
    tiny_model(num_labels=2).save_pretrained(folder / "model")
    pixels = np.random.default_rng(0).integers(1, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    profile = {"driver": "GTiff", "width": 64, "height": 48, "count": 3, "dtype": "uint8"}
    profile |= {"crs": "EPSG:32632", "transform": rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
    with rasterio.open(folder / "scene.tif", "w", **profile) as scene:
        scene.write(pixels.transpose(2, 0, 1))
    for kind in ("images", "annotations"):
        (folder / "data" / kind / "validation").mkdir(parents=True)
    shutil.copy(folder / "photo.png", folder / "data" / "images" / "validation" / "photo.png")
    Image.fromarray(pixels[:, :, 0] % 2).save(folder / "data" / "annotations" / "validation" / "photo.png")
    for place in ("model", "data"):
        write_classes(Classes(("ground", "water")), folder / place / "classes.json")
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    found = {name for name in names if ".dist-info/" not in name}
    source = ROOT / "src"
    assert found == {
        path.relative_to(source).as_posix()
        for path in (source / "ccsegformer").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    needed = ("py.typed", "cli/demo.yaml", "config/protocols/segformer.yaml", "report/templates/base.html.j2")
    needed += ("app/static/index.html", "app/static/label.js")
    needed += ("labelling/example_model/model.safetensors", "labelling/example_model/README.md")
    assert {f"ccsegformer/{name}" for name in needed} <= found
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_optional_packages_are_not_there(fresh: Fresh) -> None:
    script = (
        "import sys; from importlib.util import find_spec; print(*[n for n in sys.argv[1:] if find_spec(n)])"
    )
    names = {*EXTRA_OF, "pytest", "hatchling"} - TORCH_HAS
    done = fresh.run("python", "-I", "-c", script, *names, "torch")
    assert (done.stdout.split(), done.stderr) == (["torch"], "")


def test_the_version(fresh: Fresh) -> None:
    done = fresh.run("ccsegformer", "--version")
    assert done.stdout == f"ccsegformer {metadata.version('ccsegformer')}\n", done.stderr


def test_photographs_and_scenes_are_labelled(fresh: Fresh) -> None:
    done = fresh.run("ccsegformer", "predict", "model", "photo.png", "scene.tif", "--output", "labelled")
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (fresh.folder / "labelled").iterdir()}
    assert {"photo.png", "photo_overlay.png", "scene.tif"} <= written
    with rasterio.open(fresh.folder / "labelled" / "scene.tif") as found:
        assert (found.shape, found.crs) == ((48, 64), "EPSG:32632")


def test_the_first_command(fresh: Fresh) -> None:
    done = fresh.run("ccsegformer", "predict", "example", "--output", "first")
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (fresh.folder / "first").iterdir()}
    assert written == {"example.jpg", "example.png", "example_overlay.png"}
    assert "1 image in " in done.stdout


COMPLETE = """
source .bash_completions/ccsegformer.sh
COMP_WORDS=(ccsegformer pre) COMP_CWORD=1
_ccsegformer_completion ccsegformer
echo "${COMPREPLY[@]}"
"""


def test_bash_completes(fresh: Fresh) -> None:
    done = fresh.run("ccsegformer", "--install-completion", "bash", **COMPLETING, HOME=str(fresh.folder))
    assert done.returncode == 0, done.stderr
    path = f"{fresh.bin}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", COMPLETE],
        cwd=fresh.folder,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "predict\n", done.stderr


def test_a_folder_is_scored(fresh: Fresh) -> None:
    done = fresh.run("ccsegformer", "evaluate", "model", "--data", "data")
    assert done.returncode == 0, done.stderr
    assert "water" in done.stdout


def test_two_processes_score_a_folder(fresh: Fresh) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = fresh.run("python", *torchrun, "-m", "ccsegformer", "evaluate", "model", "--data", "data")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean IoU of the data set") == 1  # one process prints


SCRIPT = """
import ccsegformer, torch
from ccsegformer import load_model, predict_labels, predict_scene

model, classes = load_model("model")
print(*predict_labels(model, torch.zeros(3, 40, 50, dtype=torch.uint8)).shape)
print(predict_scene(model, "scene.tif", "map.tif", classes=classes).path)
for attempt in (
    lambda: ccsegformer.train,
    lambda: ccsegformer.compare,
    lambda: predict_scene(model, "scene.tif", "other.tif", classes=classes, polygons="map.gpkg"),
):
    try:
        attempt()
    except ccsegformer.CCSegformerError as error:
        print(str(error).rpartition(": ")[2])
"""


def test_in_python(fresh: Fresh) -> None:
    done = fresh.run("python", "-I", "-c", SCRIPT)
    hints = [f"pip install 'ccsegformer[{extra}]'" for extra in ("train", "lab", "geo")]
    assert done.stdout.splitlines() == ["40 50", "map.tif", *hints], done.stderr


RECIPE = ROOT / "recipes" / "small.yaml"
NEEDING: dict[str, list[list[object]]] = {
    "train": [["train", RECIPE, "--data", "data", "--output", "run"]],
    "lab": [
        ["compare", RECIPE, "--data", "data", "--output", "run"],
        ["evaluate", "model", "--data", "data", "--output", "scores"],
    ],
    "export": [["export", "model", "--format", "onnx", "--output", "model.onnx"]],
    "app": [["app", "model"]],
    "geo": [["predict", "model", "scene.tif", "--output", "other.tif", "--polygons", "map.gpkg"]],
}


def test_what_needs_an_extra_names_it(fresh: Fresh) -> None:
    cases = [(extra, command) for extra, commands in NEEDING.items() for command in commands]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda case: fresh.run("ccsegformer", *case[1]), cases))
    for (extra, command), done in zip(cases, outcomes, strict=True):
        assert (done.returncode, done.stdout) == (1, ""), f"{command}: {done.stderr}"
        assert done.stderr.startswith("ccsegformer: error: ") and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.endswith(f"pip install 'ccsegformer[{extra}]'\n"), done.stderr
