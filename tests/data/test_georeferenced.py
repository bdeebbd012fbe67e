"""Generated scenes as GeoTIFFs, read back by GDAL."""

import resource
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.enums import ColorInterp, MaskFlags

from ccsegformer.data.labels import read_classes
from ccsegformer.data.procedural.geotiff import _scene_transform, write_scenes
from ccsegformer.data.procedural.scenes import PROCEDURAL_CLASSES, ProceduralScenes, scene
from ccsegformer.errors import DataError, OutputError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "new"
    write_scenes(folder, training=2, validation=1, size=160, seed=3)
    return folder


def test_the_files_of_a_folder_of_scenes(folder: Path, tmp_path: Path) -> None:
    pairs = ["training/training_00000", "training/training_00001", "validation/validation_00000"]
    files = contents(folder)
    assert sorted(files) == sorted(
        ["classes.json", *(f"{pair}{end}.tif" for pair in pairs for end in ("", "_mask"))]
    )
    assert read_classes(folder / "classes.json") == PROCEDURAL_CLASSES
    write_scenes(tmp_path / "again", training=2, validation=1, size=160, seed=3)
    assert contents(tmp_path / "again") == files


def test_scenes_and_masks_lie_on_each_other(folder: Path) -> None:
    index = 1
    image, labels = scene(2 * 3, index, 160)
    assert ProceduralScenes("training", count=2, size=160, seed=3)[index]["mask"].numpy().tolist() == (
        labels.tolist()
    )
    with (
        rasterio.open(folder / "training/training_00001.tif") as picture,
        rasterio.open(folder / "training/training_00001_mask.tif") as mask,
    ):
        assert np.array_equal(picture.read(), np.moveaxis(image, 2, 0))
        assert np.array_equal(mask.read(1), labels)
        assert picture.crs == mask.crs and picture.crs.to_epsg() == 32632
        assert picture.transform == mask.transform
        assert picture.res == (0.25, 0.25) and picture.transform.b == 0
        assert picture.profile["tiled"] and picture.compression == mask.compression
        assert picture.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        assert picture.mask_flag_enums[0] == [MaskFlags.all_valid]
        assert mask.nodata == PROCEDURAL_CLASSES.ignore_index and mask.colorinterp == (ColorInterp.palette,)
        colours = mask.colormap(1)
        assert [colours[label][:3] for label in range(len(PROCEDURAL_CLASSES))] == list(
            PROCEDURAL_CLASSES.palette
        )
        assert colours[PROCEDURAL_CLASSES.ignore_index][3] == 0  # transparent


def test_footprints_of_all_scenes_are_apart() -> None:
    """A scene's place depends only on its split, number and size."""
    for size in (128, 8192):
        shapes = []
        for split in ("training", "validation"):
            for number in range(25):
                transform = _scene_transform(split, number, size)
                left, top = transform.c, transform.f
                shapes.append(shapely.box(left, top - size * 0.25, left + size * 0.25, top))
        tree = shapely.STRtree(shapes)
        assert len(tree.query(shapes, predicate="intersects")[0]) == len(shapes)  # each itself


@pytest.mark.parametrize("change", [{"size": 127}, {"seed": -1}, {"training": -1}, {"training": 0}])
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    arguments = {"training": 1, "validation": 0, "size": 128, "seed": 0} | change
    with pytest.raises(DataError, match="procedural: "):
        write_scenes(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for folder in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(OutputError, match=f"{folder}: is not an empty folder"):
            write_scenes(folder, training=1, validation=0, size=128)
    assert list(contents(tmp_path)) == ["thesis.txt"]


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match=r"training_00000\.tif: cannot be written") as raised:
            write_scenes(tmp_path, training=1, validation=0, size=128)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value)
    assert contents(tmp_path) == {}
