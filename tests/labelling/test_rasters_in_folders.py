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
from ccsegformer.labelling.engine import open_engine
from ccsegformer.labelling.inputs import predict_inputs
from ccsegformer.labelling.preprocess import given_preprocessing

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


def test_a_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"crs": "EPSG:32632", "transform": Affine(1, 0, 4e5, 0, -1, 5e6)}
    write(tmp_path / "ortho.gpkg", 3, "uint8", driver="GPKG", RASTER_TABLE="ortho", **place)
    monkeypatch.chdir(tmp_path)
    assert mapped(["GPKG:ortho.gpkg:ortho"], tmp_path / "out.tif", 3) == ["out.tif"]
