"""Invalid and damaged scenes, masks and polygons end in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine

from ccsegformer.errors import DataError
from ccsegformer.raster.dataset import Scenes
from ccsegformer.sources import open_dataset
from tests.raster.test_dataset import BARE, CRS, blobs, box_on_map, geojson, image, labelled_scene, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return labelled_scene(tmp_path / "data")


def polygons(name: str = "a", shape: Any = None, **columns: list[Any]) -> Callable[[Path], None]:
    def harm(root: Path) -> None:
        (root / "training" / "a_mask.tif").unlink()
        geojson(root / "training" / f"{name}.geojson", [shape or box_on_map(0, 0, 30, 30)], CRS, **columns)

    return harm


def change(name: str, **profile: Any) -> Callable[[Path], None]:
    """Return a function that rewrites the scene or its mask."""

    def harm(root: Path) -> None:
        values = profile.pop("values", None)
        default = blobs() if "mask" in name else image()
        write(root / "training" / name, default if values is None else values, **profile)

    return harm


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda root: (root / "training" / name).write_text(content) and None


def remove(*names: str) -> Callable[[Path], None]:
    return lambda root: [(root / "training" / name).unlink() for name in names] and None


FAR = Affine(2.0, 0, 700_000, 0, -2.0, 5_000_000)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (text("a.tif", "no"), "a.tif: not a raster that can be read: "),
        (text("a_mask.tif", "no"), "a_mask.tif: not a raster that can be read: "),
        (remove("a_mask.tif"), "a_mask.tif: mask is missing; a scene needs one, or polygons in a.gpkg, "),
        (remove("a.tif"), ": no scenes (.tif, .tiff, .vrt, .jp2, .img) in this split"),
        (change("b_mask.tif"), "b_mask.tif: mask without a scene"),
        (
            change("a_mask.tif", **BARE),
            "a_mask.tif: has no georeference, which {folder}/a.tif has; give it one",
        ),
        (change("a.tif", **BARE), "a.tif: has no georeference, which {folder}/a_mask.tif has; give it one"),
        (change("a_mask.tif", transform=FAR), "a_mask.tif: does not overlap {folder}/a.tif"),
        (change("a_mask.tif", crs=None, transform=FAR), "a_mask.tif: has no CRS and another grid than "),
        (
            change("a_mask.tif", values=image()),
            "a_mask.tif: a mask is one band of class ids, but this has 3 of uint8",
        ),
        (
            change("a_mask.tif", values=image(2, "float32")),
            "a_mask.tif: a mask is one band of class ids, but this has 2 of float32",
        ),
        (polygons(), "a.geojson: has no column class, class_id, label to tell 3 classes apart"),
        (
            polygons(label=["hedge"]),
            "a.geojson: feature 0 has the class 'hedge', which is none of field, wood, water",
        ),
        (polygons(class_id=[3]), "a.geojson: feature 0 has the class 3, which is none of field, wood, water"),
        (
            polygons(shape=shapely.Point(500_010, 4_999_990), label=["wood"]),
            "a.geojson: holds features of type Point",
        ),
        (
            polygons(shape=shapely.box(800_000, 5_000_000, 800_100, 5_000_100), label=["wood"]),
            "a.geojson: does not overlap {folder}/a.tif",
        ),
    ],
)
def test_invalid_data_is_a_one_line_error(harm: Callable[[Path], None], message: str, root: Path) -> None:
    harm(root)
    folder = root / "training"
    with pytest.raises(DataError) as caught:
        Scenes(root)
    expected = message.format(folder=folder)
    assert str(caught.value).startswith(str(folder) + ("" if expected.startswith(":") else "/") + expected)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.tif", "a_mask.tif", "a.geojson", "a.gpkg"])
def test_damaged_files_never_show_a_traceback(name: str, root: Path) -> None:
    path = root / "training" / name
    if name.endswith("tif"):
        write(
            root / "training" / "a_mask.tif", blobs(), transform=Affine(2.5, 0, 500_000, 0, -2.5, 5_000_000)
        )
    else:
        polygons(label=["wood"])(root)
        if name == "a.gpkg":
            meta, _, shapes, columns = pyogrio.raw.read(path.with_suffix(".geojson"))
            pyogrio.raw.write(path, shapes, columns, meta["fields"], geometry_type="Polygon", crs=CRS)
            path.with_suffix(".geojson").unlink()
    content, generator, refused = path.read_bytes(), np.random.default_rng(0), 0
    for number in range(60):
        damaged = bytearray(content)
        end = len(content) if number % 2 else min(400, len(content))
        for place in generator.integers(0, end, 1 + number % 3):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged[: generator.integers(len(content))] if number % 15 == 0 else damaged)
        try:
            scenes = Scenes(root)
            if sum(scene.height * scene.width for scene in scenes.scenes) < 10**6:
                list(scenes)
        except DataError as error:
            assert "\n" not in str(error) and str(root / "training") in str(error)
            refused += 1
    assert refused > 5


def test_a_local_crs_is_a_one_line_error(root: Path) -> None:
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    write(root / "training" / "a_mask.tif", blobs(), crs=local)
    with pytest.raises(DataError, match=r"a_mask\.tif: no transformation exists between the two CRSs: "):
        Scenes(root)
    for split in ("training", "validation"):  # usable for training, with a warning
        crs = local if split == "training" else CRS
        write(root / split / "b.tif", image(), crs=crs)
        write(root / split / "b_mask.tif", blobs(), crs=crs)
    (root / "training" / "a_mask.tif").unlink()
    (root / "training" / "a.tif").unlink()
    assert len(Scenes(root)) == 1


def test_polygons_need_a_crs(root: Path) -> None:
    (root / "training" / "a_mask.tif").unlink()
    path = root / "training" / "a.gpkg"
    shapes = np.array([shapely.to_wkb(box_on_map(0, 0, 30, 30))])
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        pyogrio.raw.write(path, shapes, [np.array(["wood"])], np.array(["class"]), geometry_type="Polygon")
    with pytest.raises(DataError, match=r"a\.gpkg: has no CRS"):
        Scenes(root)
    path.unlink()
    geojson(root / "training" / "a.geojson", [box_on_map(0, 0, 30, 30)], CRS, label=["wood"])
    write(root / "training" / "a.tif", image(), crs=None)
    with pytest.raises(DataError, match=r"a\.tif: has no CRS, which the polygons of .*a\.geojson"):
        Scenes(root)
    (root / "training" / "a.geojson").write_text("{}")
    with pytest.raises(DataError, match=r"a\.geojson: polygons cannot be read: "):
        Scenes(root)


def test_a_label_outside_the_classes_is_named_with_its_place(root: Path) -> None:
    labels = np.zeros((1, 600, 700), np.uint8)
    labels[0, 590, 650] = 3
    write(root / "training" / "a.tif", image(shape=(600, 700)))
    path = write(root / "training" / "a_mask.tif", labels)
    with pytest.raises(DataError) as caught:
        list(Scenes(root))
    where = f"{path}: label 3 at row 590, column 650 is outside the classes"
    assert str(caught.value) == f"{where} 0-2 (ignore_index 255)"
    (root / "classes.json").unlink()
    labels[labels == 3] = 255
    write(path, labels)
    with pytest.raises(DataError) as caught:
        list(Scenes(root))
    assert str(caught.value) == (
        f"{path}: label 255 at row 590, column 650 is outside the classes 0-1 (ignore_index 65535); name the "
        f"classes in {root / 'classes.json'}"
    )


def test_an_empty_split_and_a_missing_one(root: Path) -> None:
    (root / "validation").mkdir()
    with pytest.raises(DataError, match=r"validation: no scenes \(.*\) in this split"):
        open_dataset(root, "validation")
    with pytest.raises(DataError, match="test: no such folder; the splits here are training, validation"):
        open_dataset(root, "test")
