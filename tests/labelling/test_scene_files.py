"""A map never replaces a file that its scene is made of, and leaves nothing of an earlier map beside it."""

import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.shutil
import torch
from rasterio import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor

from ccsegformer.data.labels import Classes
from ccsegformer.errors import OutputError
from ccsegformer.labelling.engine import open_engine
from ccsegformer.labelling.inputs import predict_inputs
from ccsegformer.labelling.preprocess import given_preprocessing
from ccsegformer.labelling.scene import SceneMap, predict_scene
from ccsegformer.raster.mapping import _whole_job
from ccsegformer.raster.polygons import write_polygons
from ccsegformer.raster.read import Box, open_raster, read_box
from ccsegformer.raster.source_files import files_of
from tests.raster.test_placement import rpcs

CLASSES = Classes(("dark", "bright"))
GRID = Affine(1, 0, 400_000, 0, -1, 5_000_000)
MOSAIC = """<VRTDataset rasterXSize="40" rasterYSize="40"><SRS>EPSG:32632</SRS>
<GeoTransform>400000, 1, 0, 5000000, 0, -1</GeoTransform>{bands}</VRTDataset>"""
BAND = """<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource>
<SourceFilename relativeToVRT="1">{source}</SourceFilename><SourceBand>{band}</SourceBand>
</SimpleSource></VRTRasterBand>"""


def threshold(pixels: Tensor) -> Tensor:
    """Label pixels of positive mean as bright."""
    mean = pixels.mean(dim=1, keepdim=True)
    return torch.cat([-mean, mean], dim=1)


def write(path: Path, count: int = 3, seed: int = 0, **profile: Any) -> Path:
    values = np.random.default_rng(seed).integers(1, 255, (count, 40, 40), dtype=np.uint8)
    options = {"driver": "GTiff", "count": count, "width": 40, "height": 40, "dtype": "uint8"}
    options |= {"crs": "EPSG:32632", "transform": GRID}
    with rasterio.open(path, "w", **(options | profile)) as target:
        target.write(values)
    return path


def mosaic(path: Path, source: str) -> Path:
    path.write_text(MOSAIC.format(bands="".join(BAND.format(band=n, source=source) for n in (1, 2, 3))))
    return path


def run(scene: str | Path, output: Path, **options: Any) -> SceneMap:
    return predict_scene(threshold, scene, output, classes=CLASSES, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A mosaic of a mosaic of a tile with a mask, and the same tile in a zip."""
    write(tmp_path / "t.tif")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(tmp_path / "t.tif", "r+") as target:
        target.write_mask(np.arange(1600).reshape(40, 40) >= 400)
    mosaic(tmp_path / "v.vrt", "t.tif")
    mosaic(tmp_path / "w.vrt", "v.vrt")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.write(tmp_path / "t.tif", "t.tif")
        archive.write(tmp_path / "t.tif.msk", "t.tif.msk")
    (tmp_path / "link.tif").symlink_to(tmp_path / "t.tif")
    return tmp_path


@pytest.mark.parametrize(
    ("scene", "output"),
    [
        *[("t.tif", "t.tif"), ("t.tif", "link.tif"), ("link.tif", "t.tif"), ("v.vrt", "t.tif")],
        *[("v.vrt", "v.vrt"), ("w.vrt", "t.tif"), ("w.vrt", "v.vrt"), ("w.vrt", "link.tif")],
        *[("w.vrt", "t.tif.msk"), ("t.tif", "t.tif.msk"), ("/vsizip/s.zip/t.tif", "s.zip")],
        *[
            ("GTIFF_DIR:1:t.tif", "t.tif"),
            ("vrt://t.tif?bands=1,2,3", "t.tif"),
        ],
    ],
)
def test_no_file_of_the_scene_is_replaced(
    scene: str, output: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match=f"^{output}: would replace "):
        run(scene, Path(output))
    with pytest.raises(OutputError, match="would replace "):
        write(folder / "x.gpkg")
        run("x.gpkg", Path("map.tif"), polygons="x.gpkg")
    (folder / "x.gpkg").unlink()
    for left in folder.glob("x.gpkg*"):
        left.unlink()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("scene", ["t.tif", "v.vrt", "w.vrt", "s.zip"])
def test_a_resumed_run_notices_any_file_that_changed(scene: str, folder: Path) -> None:
    path = f"/vsizip/{folder / scene}/t.tif" if scene == "s.zip" else folder / scene

    def job() -> dict[str, Any]:
        with open_raster(path) as source:
            return _whole_job({}, path, source)

    before = job()
    assert job() == before
    changed = folder / (scene if scene == "s.zip" else "t.tif")
    changed.write_bytes(changed.read_bytes() + b" ")
    assert job() != before
    if scene != "s.zip":
        before = job()
        (folder / "t.tif.msk").unlink()
        assert job() != before


def test_sidecars_in_a_zip_count(folder: Path) -> None:
    with open_raster(f"/vsizip/{folder / 's.zip'}/t.tif") as source:
        _, valid = read_box(source, Box(0, 0, 40, 40))
        assert files_of(source) == {folder / "s.zip"}
    assert (~valid).sum() == 400


def test_what_lay_beside_an_earlier_map_goes_with_it(folder: Path) -> None:
    output = folder / "map.tif"
    run(folder / "t.tif", output)
    expected = output.read_bytes()
    for ending in (".ovr", ".msk", ".msk.ovr"):
        Path(f"{output}{ending}").write_bytes(b"old")
    run(folder / "t.tif", output)
    assert output.read_bytes() == expected
    assert sorted(path.name for path in folder.glob("map.tif*")) == ["map.tif", "map.tif.aux.xml"]


def test_a_geopackage_is_replaced_with_its_journal(folder: Path) -> None:
    output = folder / "map.gpkg"
    run(folder / "t.tif", folder / "map.tif")
    count = write_polygons(folder / "map.tif", output, classes=CLASSES)
    with sqlite3.connect(output) as other:  # a program that holds it open
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("CREATE TABLE theirs (x)")
        other.commit()
        assert Path(f"{output}-wal").exists()
        assert write_polygons(folder / "map.tif", output, classes=CLASSES) == count
        assert not Path(f"{output}-wal").exists() and not Path(f"{output}-shm").exists()
    other.close()
    assert pyogrio.read_info(output)["features"] == count
    with sqlite3.connect(output) as written:
        assert written.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    written.close()


def test_a_map_of_bands_of_which_one_is_declared_alpha(tmp_path: Path) -> None:
    scene = write(tmp_path / "a.tif", 4, photometric="RGB", alpha="YES")
    with rasterio.open(scene, "r+") as target:
        assert target.colorinterp[3] == ColorInterp.alpha
        target.write(np.pad(target.read(4)[:, 10:], ((0, 0), (10, 0))), 4)
    done = run(scene, tmp_path / "map.tif")
    (note,) = done.notes
    assert "band 4 is declared alpha" in note and note.endswith("; to use it: --bands 1,2,3,4")
    four = given_preprocessing([100] * 4, [50] * 4)
    done = run(scene, tmp_path / "all.tif", bands=(1, 2, 3, 4), preprocessing=four)
    assert not done.notes
    with rasterio.open(tmp_path / "map.tif") as three, rasterio.open(tmp_path / "all.tif") as all_of_them:
        assert (three.read(1) == 255).sum() == 400 and not (all_of_them.read(1) == 255).any()


def test_a_scene_placed_by_rpcs_keeps_them(tmp_path: Path) -> None:
    with pytest.warns(NotGeoreferencedWarning):
        scene = write(tmp_path / "a.tif", crs=None, transform=Affine.identity(), rpcs=rpcs())
    assert not run(scene, tmp_path / "map.tif", polygons=tmp_path / "map.gpkg").notes
    with rasterio.open(tmp_path / "map.tif") as source:
        assert source.rpcs == rpcs()
    assert pyogrio.read_info(tmp_path / "map.gpkg")["crs"] == "EPSG:4326"


def test_a_map_does_not_replace_a_tile_of_another_scene(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "t.tif")
    mosaic(tmp_path / "b" / "v.vrt", "t.tif")
    before = (tmp_path / "b" / "t.tif").read_bytes()
    scenes = [str(tmp_path / "a" / "t.tif"), str(tmp_path / "b" / "v.vrt")]
    with pytest.raises(OutputError, match=r"b/t\.tif: would replace an image or a file of one"):
        list(predict_inputs(open_engine(threshold), CLASSES, scenes, tmp_path / "b"))
    assert (tmp_path / "b" / "t.tif").read_bytes() == before
