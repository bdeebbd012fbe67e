"""Train, evaluate and predict on georeferenced scenes from the command line, and what ends in one line."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.models import configuration_ccsegformer

Run = Callable[..., Any]  # see conftest
SIDE = 96
BARE = {"crs": None, "transform": rasterio.Affine.identity()}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A B0 that trains in milliseconds."""
    monkeypatch.setitem(configuration_ccsegformer._MIT, "b0", ((8, 16, 40, 64), (1, 1, 1, 1), 16))


def write(path: Path, values: NDArray[np.generic], **profile: Any) -> None:
    """A GeoTIFF of (bands, H, W), uncompressed: cut off, it lacks rows."""
    bands, height, width = values.shape
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
    shape = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **{**shape, **place, **profile}) as target:
            target.write(values)


def image(bands: int = 3, dtype: str = "uint8") -> NDArray[np.generic]:
    return np.random.default_rng(0).integers(1, 200, (bands, SIDE, SIDE)).astype(dtype)


def mask() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 2, (1, SIDE, SIDE)).astype(np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A scene of 8-bit RGB for each split."""
    root = tmp_path / "data"
    for split in ("training", "validation"):
        (root / split).mkdir(parents=True)
        write(root / split / "s.tif", image())
        write(root / split / "s_mask.tif", mask())
    write_classes(Classes(("ground", "water")), root / "classes.json")
    return root


@pytest.fixture
def model(run: Run, recipe: Path, data: Path, tmp_path: Path) -> Path:
    done = run("train", recipe, "--data", data, "--output", tmp_path / "model")
    assert done.code == 0, done.err
    return tmp_path / "model"


def test_from_scenes_to_a_map(run: Run, data: Path, recipe: Path, tmp_path: Path) -> None:
    for split in ("training", "validation"):
        write(data / split / "s.tif", image(5, "uint16"))
    done = run("train", recipe, "--data", data, "--output", tmp_path / "model")
    assert done.code == 0 and "5 bands of uint16" in done.err, done.err
    scored = run("evaluate", tmp_path / "model", "--data", data, "--output", tmp_path / "scores")
    assert scored.code == 0 and (tmp_path / "scores" / "evaluation.html").exists(), scored.err
    scene = data / "validation" / "s.tif"
    mapped = run("predict", tmp_path / "model", scene, "--output", tmp_path / "map.tif", "--confidence")
    assert mapped.code == 0, mapped.err
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.count == 2 and found.read(1).max() < 2


def rewrite(name: str, values: NDArray[np.generic] | None = None, **profile: Any) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        default = mask() if "mask" in name else image()
        write(folder / name, default if values is None else values, **profile)

    return harm


def text(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("no raster") and None


def truncate(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) - (SIDE * SIDE) // 2])

    return harm


def two_bare(folder: Path) -> None:
    write(folder / "s.tif", image(), **BARE)
    write(folder / "s_mask.tif", mask()[:, :50, :50], **BARE)


HARM = {
    "text": (text("s.tif"), "s.tif: not a raster that can be read: "),
    "text mask": (text("s_mask.tif"), "s_mask.tif: not a raster that can be read: "),
    "bare mask": (rewrite("s_mask.tif", **BARE), "s_mask.tif: has no georeference, which "),
    "bare scene": (rewrite("s.tif", **BARE), "s.tif: has no georeference, which "),
    "other size": (two_bare, "s_mask.tif: 50x50 pixels for 96x96 of "),
    "truncated": (truncate("s.tif"), "s.tif: rows 0-95, columns 0-95 cannot be read: "),
    "truncated mask": (truncate("s_mask.tif"), "s_mask.tif: rows 0-95, columns 0-95 cannot be read: "),
    "unknown class": (
        rewrite("s_mask.tif", 2 * mask()),
        "s_mask.tif: label 2 at row ",
    ),
    "doubles": (rewrite("s.tif", image(3, "float64")), "s.tif: values of float64; convert them to one of "),
}
NOTHING = np.zeros((3, SIDE, SIDE), np.uint8)


def refused(outcome: Any, message: str) -> None:
    assert outcome.code == 1, outcome
    errors = [line for line in outcome.err.splitlines() if line.startswith("ccsegformer: error: ")]
    assert errors == outcome.err.splitlines()[-1:] and message in errors[0], outcome.err


@pytest.mark.parametrize(
    ("harm", "message"),
    [*HARM.values(), (rewrite("s.tif", NOTHING, nodata=0), "s.tif: has nothing but nodata and unlabelled")],
    ids=[*HARM, "nodata"],
)
def test_scenes_that_cannot_be_trained_on(
    run: Run, recipe: Path, data: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(data / "training")
    refused(run("train", recipe, "--data", data, "--output", tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()


def test_scenes_that_cannot_be_scored(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    folder = data / "validation"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    further = {
        "bands": (rewrite("s.tif", image(5)), "s_0_0: 5 bands for a model of 3"),
        "type": (
            rewrite("s.tif", image(3, "uint16")),
            "s_0_0: float32 values for a model of 8-bit",
        ),
        "nodata": (rewrite("s.tif", NOTHING, nodata=0), "no labelled pixel to score"),
    }
    for harm, message in {**HARM, **further}.values():
        harm(folder)
        output = tmp_path / "scores"
        refused(run("evaluate", model, "--data", data, "--output", output), message)
        assert not output.exists()
        for path, content in before.items():
            path.write_bytes(content)


def test_scenes_that_cannot_be_mapped(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    scene = tmp_path / "data" / "validation" / "s.tif"
    (tmp_path / "maps").mkdir()
    for harm, message in (
        HARM["text"],
        HARM["truncated"],
        HARM["doubles"],
        (rewrite("s.tif", image(5)), "s.tif: 5 bands for a model of 3"),
        (rewrite("s.tif", image(1)), "s.tif: 1 band for a model of 3"),
        (
            rewrite("s.tif", image(3, "uint16")),
            "s.tif: uint16 values for a model of 8-bit colours",
        ),
    ):
        scene.unlink()
        write(scene, image())
        harm(scene.parent)
        polygons = ["--polygons", tmp_path / "maps" / "a.gpkg"]
        refused(run("predict", model, scene, "--output", tmp_path / "maps" / "a.tif", *polygons), message)
        assert not list((tmp_path / "maps").iterdir())


def test_what_is_unusual_is_said_once(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    scene = data / "validation" / "s.tif"
    output = ["--output", tmp_path / "map.tif"]
    for profile, note in (
        ({"crs": None}, "has no coordinate reference system, so neither has the map"),
        (BARE, "has no coordinate reference system, so neither has the map"),
        ({"nodata": 77, "values": np.full_like(NOTHING, 77)}, "no pixel has data, and the map is empty"),
    ):
        write(scene, **{"values": image(), **profile})
        done = run("predict", model, scene, *output)
        engine, said = done.err.splitlines()
        assert (done.code, said) == (0, f"{scene}: {note}")
        assert engine.startswith("engine: ")
    refused(run("predict", model, scene, *output, "--polygons", tmp_path / "a.shp"), "a.shp: polygons are")
    write(scene, image(), crs=None)
    refused(run("predict", model, scene, *output, "--polygons", tmp_path / "a.geojson"), "write a .gpkg")
