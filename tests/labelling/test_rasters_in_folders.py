"""Folders of rasters as GDAL knows them: mosaics, other formats, parts of files, none with a georeference."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor

from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.labelling.engine import open_engine
from ccsegformer.labelling.inputs import predict_inputs
from ccsegformer.labelling.preprocess import given_preprocessing
from ccsegformer.raster.read import Box, open_raster, read_box
from ccsegformer.raster.source_files import files_of

CLASSES = Classes(("dark", "bright"))


def threshold(pixels: Tensor) -> Tensor:
    mean = pixels.mean(dim=1, keepdim=True)
    return torch.cat([-mean, mean], dim=1)


def write(path: Path, count: int, dtype: str, **profile: Any) -> Path:
    values = np.random.default_rng(0).integers(1, 255, (count, 40, 40)).astype(dtype)
    options = {"driver": "GTiff", "count": count, "width": 40, "height": 40, "dtype": dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **(options | profile)) as target:
            target.write(values)
    return path


def mapped(inputs: list[str], output: Path, bands: int) -> list[str]:
    engine = open_engine(threshold).with_preprocessing(given_preprocessing([100] * bands, [50] * bands))
    done = list(predict_inputs(engine, CLASSES, inputs, output))
    for (path, *_), _ in done:
        assert np.isin(np.unique(rasterio.open(path).read(1)), (0, 1)).all()
    return sorted(paths[0].name for paths, _ in done)


def test_a_folder_of_mosaics_and_other_formats(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    place = {"crs": "EPSG:32632", "transform": Affine(1, 0, 4e5, 0, -1, 5e6)}
    write(folder / "a.tif", 3, "uint8", **place)
    for name, driver in (("b.vrt", "VRT"), ("c.img", "HFA"), ("d.dat", "ENVI")):
        rasterio.shutil.copy(folder / "a.tif", folder / name, driver=driver)
    (folder / "notes.txt").write_text("not a raster")
    assert mapped([str(folder)], tmp_path / "out", 3) == ["a.tif", "b.tif", "c.tif", "d.tif"]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("count", "dtype"), [(5, "float32"), (4, "uint16"), (2, "int16"), (1, "float32"), (6, "uint8")]
)
def test_rasters_without_georeference(count: int, dtype: str, tmp_path: Path) -> None:
    scene = write(tmp_path / "a.tif", count, dtype, photometric="MINISBLACK")
    assert mapped([str(scene)], tmp_path / "out", count) == ["a.tif"]


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of several rasters: netCDF, which is HDF5 too, GeoPackage and TIFF."""
    place = {"crs": "EPSG:32632", "transform": Affine(1, 0, 4e5, 0, -1, 5e6)}
    write(tmp_path / "a.tif", 3, "uint8", **place)
    rasterio.shutil.copy(tmp_path / "a.tif", tmp_path / "a.nc", driver="netCDF", FORMAT="NC4")
    for number, name in enumerate(("ortho", "second")):
        more = {"APPEND_SUBDATASET": "YES"} if number else {}
        write(tmp_path / "o.gpkg", 3, "uint8", driver="GPKG", RASTER_TABLE=name, **more, **place)
        write(tmp_path / "t.tif", 3, "uint8", APPEND_SUBDATASET=bool(number), **place)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("part", "bands"),
    [
        *[("NETCDF:a.nc:Band1", [1]), ('NETCDF:"a.nc":Band2', [2]), ("netcdf:{folder}/a.nc:Band3", [3])],
        *[("HDF5:a.nc://Band1", [1]), ('HDF5:"{folder}/a.nc"://Band2', [2])],
        *[("GPKG:o.gpkg:ortho", [1, 2, 3]), ("GPKG:{folder}/o.gpkg:second", [1, 2, 3])],
        *[("GTIFF_DIR:1:t.tif", [1, 2, 3]), ("GTIFF_DIR:2:{folder}/t.tif", [1, 2, 3])],
    ],
)
def test_a_part_of_a_file(part: str, bands: list[int], parts: Path) -> None:
    part = part.format(folder=parts)
    expected = rasterio.open("a.tif").read(bands)
    if part.startswith("HDF5"):  # netCDF keeps rows from south to north
        expected = expected[:, ::-1]
    with open_raster(part) as source:
        values, valid = read_box(source, Box(0, 0, 40, 40))
        assert files_of(source) == {parts / source_file(part)}
    np.testing.assert_array_equal(values, expected)
    assert valid.all()
    assert mapped([part], Path("out.tif"), len(bands)) == ["out.tif"]
    with rasterio.open("out.tif") as labels:
        assert (labels.crs is None) == part.startswith("HDF5")
        mean = expected.mean(axis=0)
        np.testing.assert_array_equal(labels.read(1)[mean != 100], (mean > 100)[mean != 100])


def source_file(part: str) -> str:
    return next(name for name in ("a.nc", "o.gpkg", "t.tif") if name in part)


def test_parts_of_one_file_are_mapped_into_a_folder(parts: Path) -> None:
    wanted = ["NETCDF:a.nc:Band1", f'NETCDF:"{parts}/a.nc":Band2', "HDF5:a.nc://Band3"]
    assert mapped(wanted, Path("one"), 1) == ["a_Band1.tif", "a_Band2.tif", "a_Band3.tif"]
    wanted = ["GPKG:o.gpkg:ortho", f"GPKG:{parts}/o.gpkg:second", "GTIFF_DIR:1:t.tif", "GTIFF_DIR:2:t.tif"]
    assert mapped(wanted, Path("three"), 3) == ["1_t.tif", "2_t.tif", "o_ortho.tif", "o_second.tif"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "a.nc",
            "holds 3 rasters; name one of them: netcdf:a.nc:Band1, netcdf:a.nc:Band2, ",
        ),
        ("o.gpkg", "holds 2 rasters; name one of them: GPKG:o.gpkg:ortho, GPKG:o.gpkg:second"),
        ("NETCDF:a.nc:none", "not a raster that can be read: "),
        ("NETCDF:none.nc:Band1", "not a raster that can be read: "),
        ("GPKG:o.gpkg:none", "not a raster that can be read: Cannot find table 'none'"),
        ("GTIFF_DIR:9:t.tif", "not a raster that can be read: t.tif: Requested directory 9 not found"),
    ],
)
def test_a_part_that_is_not_there(part: str, message: str, parts: Path) -> None:
    with pytest.raises(DataError) as caught:
        mapped([part], Path("out.tif"), 1)
    assert str(caught.value).startswith(f"{part}: {message}") and "\n" not in str(caught.value)
    assert not list(parts.glob("*out*"))
