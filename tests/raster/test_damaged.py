"""Rasters that declare what their files cannot hold, and names of files that cannot be read."""

import re
import shutil
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning

from ccsegformer.data.labels import Classes
from ccsegformer.errors import CCSegformerError, DataError, OutputError
from ccsegformer.labelling.scene import predict_scene
from ccsegformer.raster import source_files
from ccsegformer.raster.dataset import Scenes
from ccsegformer.raster.read import has_georeference, open_raster
from ccsegformer.raster.source_files import files_of

GRID = Affine(2.0, 0, 500_000, 0, -2.0, 5_000_000)
LARGEST = 2**31 - 1
CLASSES = Classes(("dark", "bright"))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A scene of 60 x 50 pixels."""
    path = tmp_path / "a.tif"
    options = {"driver": "GTiff", "width": 60, "height": 50, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", crs="EPSG:32633", transform=GRID, **options) as target:
        target.write(np.random.default_rng(0).integers(1, 255, (3, 50, 60), dtype=np.uint8))
    return path


def mosaic(scene: Path, width: int, height: int, name: str = "v.vrt") -> Path:
    """Write a VRT of the scene that declares another size."""
    path = scene.parent / name
    rasterio.shutil.copy(scene, path, driver="VRT")
    size = f'rasterXSize="{width}" rasterYSize="{height}"'
    path.write_text(re.sub(r'rasterXSize="\d+" rasterYSize="\d+"', size, path.read_text()))
    return path


def wide_tiff(scene: Path) -> Path:
    """Write another width, tag 256, and height, tag 257, into the scene's header."""
    content = bytearray(scene.read_bytes())
    for tag, old, new in ((256, 60, LARGEST), (257, 50, 50)):
        entry = content.index(struct.pack("<HHIH", tag, 3, 1, old))
        content[entry : entry + 12] = struct.pack("<HHII", tag, 4, 1, new)
    path = scene.with_name("wide.tif")
    path.write_bytes(content)
    return path


def sparse_tiff(scene: Path) -> Path:
    """Write a TIFF of one empty tile for 4 gigapixels and more."""
    path = scene.with_name("sparse.tif")
    side = 2**17
    options = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
    blocks = {"blockxsize": side // 4, "blockysize": side // 16, "SPARSE_OK": True}
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
        rasterio.open(path, "w", **options, **blocks).close()
    return path


HUGE: dict[str, Callable[[Path], Path | str]] = {
    "a mosaic as wide as can be": lambda scene: mosaic(scene, LARGEST, 50),
    "a mosaic as high as can be": lambda scene: mosaic(scene, 60, LARGEST),
    "a mosaic as large as can be": lambda scene: mosaic(scene, LARGEST, LARGEST),
    "a mosaic of one": lambda scene: mosaic(mosaic(scene, 300_000, 50, "w.vrt"), LARGEST, 50),
    "a wide header": wide_tiff,
    "a sparse TIFF": sparse_tiff,
    "a mosaic in a zip": lambda scene: zipped(mosaic(scene, LARGEST, 50)),
}


def zipped(path: Path) -> str:
    archive = path.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as target:
        for name in ("a.tif", path.name):
            target.write(path.parent / name, name)
    return f"/vsizip/{archive}/{path.name}"


@pytest.mark.parametrize("kind", HUGE)
def test_more_pixels_than_files_can_hold_are_refused_at_once(kind: str, scene: Path, tmp_path: Path) -> None:
    path = HUGE[kind](scene)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        predict_scene(threshold, path, tmp_path / "map.tif", classes=CLASSES)
    assert time.monotonic() - start < 5
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert " pixels, but its files have " in str(caught.value)
    assert not list(tmp_path.glob("*map*"))


def test_a_huge_scene_is_not_opened_for_training(scene: Path, tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    mosaic(scene, LARGEST, LARGEST, "training/b.vrt")
    shutil.copy(scene, tmp_path / "training" / "b_mask.tif")
    with pytest.raises(DataError, match=r"b\.vrt: declares 2147483647 x 2147483647 pixels, but its files"):
        Scenes(tmp_path)


def test_large_scenes_that_files_can_hold_are_opened(scene: Path) -> None:
    path = mosaic(scene, 2**17, 2**16)  # 8.6 gigapixels
    with pytest.raises(DataError, match="declares 131072 x 65536 pixels, but its files have "):
        open_raster(path)
    scene.write_bytes(scene.read_bytes() + bytes(100_000))
    assert open_raster(path).width == 2**17


def test_a_map_that_the_disk_cannot_hold_is_refused_before_its_windows_are_listed(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_files, "PIXELS_PER_BYTE", 10**15)
    path = mosaic(scene, LARGEST, LARGEST)
    with pytest.raises(OutputError, match=" MB are needed, but only "):
        predict_scene(threshold, path, tmp_path / "new" / "map.tif", classes=CLASSES)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", [b"caf\xe9.tif", b"strip.\x96if", b"\xff\xfe.tif"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_name_that_is_not_utf_8_is_a_one_line_error(
    name: bytes, nested: bool, scene: Path, tmp_path: Path
) -> None:
    path = mosaic(scene, 60, 50)
    path.write_bytes(path.read_bytes().replace(b"a.tif", name))
    if nested:
        outer = tmp_path / "outer.vrt"
        outer.write_bytes(mosaic(scene, 60, 50, "o.vrt").read_bytes().replace(b"a.tif", b"v.vrt"))
        path = outer
    with open_raster(path) as source, pytest.raises(DataError) as caught:
        files_of(source)
    assert str(caught.value).startswith(f"{tmp_path / 'v.vrt'}: names a file, ")
    assert "\n" not in str(caught.value) and str(caught.value).isascii()
    with pytest.raises(CCSegformerError, match="not in UTF-8; rename it"):
        predict_scene(threshold, path, tmp_path / "map.tif", classes=CLASSES)


def threshold(pixels: torch.Tensor) -> torch.Tensor:
    """Label pixels of positive mean as bright."""
    mean = pixels.mean(dim=1, keepdim=True)
    return torch.cat([-mean, mean], dim=1)


def test_a_damaged_hdf5_file_says_nothing_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 100)
    assert not has_georeference(path)
    assert capfd.readouterr() == ("", "")
