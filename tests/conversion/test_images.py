"""Images without labels: which are used, and how they are cut."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from ccsegformer.conversion import images as module
from ccsegformer.conversion.images import batches, crops, divide_images, read_part
from ccsegformer.data.pixels import BandStatistics
from ccsegformer.errors import DataError
from ccsegformer.labelling.preprocess import Preprocessing

RGB = Preprocessing()


def test_a_tenth_is_held_back_and_ten_at_least(images: Path) -> None:
    division = divide_images(images, RGB)
    assert len(division.used) == len(division.held_back) == 10
    assert {*division.used, *division.held_back} == {*images.iterdir()}
    assert divide_images(images, RGB) == division != divide_images(images, RGB, seed=1)


def test_crops_are_multiples_of_32_and_depend_on_the_seed(images: Path) -> None:
    files = divide_images(images, RGB).used
    stream = crops(files, RGB, size=64, count=8)  # larger than the images: they are taken whole
    [first, *_], again = list(batches(stream, 2)), list(batches(stream, 2))
    assert first.shape == (2, 3, 32, 32) and torch.equal(first, again[0])
    assert not torch.equal(first, next(iter(batches(crops(files, RGB, size=64, count=8, seed=1), 2))))


def test_scenes_of_many_bands_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 64)
    values = np.arange(4 * 100 * 80, dtype=np.uint16).reshape(4, 100, 80)
    profile = {"driver": "GTiff", "width": 80, "height": 100, "count": 4, "dtype": "uint16"}
    profile |= {"crs": "EPSG:32632", "transform": rasterio.Affine(1, 0, 4e5, 0, -1, 5e6)}
    with rasterio.open(tmp_path / "scene.tif", "w", **profile) as target:
        target.write(values)
    wanted = Preprocessing(4, BandStatistics((1.0,) * 4, (2.0,) * 4), only_8_bit=False)
    part = read_part(tmp_path / "scene.tif", wanted, 1.0, 0.0)
    assert torch.equal(part, torch.tensor(values[:, 36:, :64].astype(np.float32)))
    with pytest.raises(DataError, match="4 bands for a model of 3"):
        read_part(tmp_path / "scene.tif", RGB)


def test_large_photographs_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 40)
    values = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    middle = read_part(tmp_path / "a.png", RGB)
    assert torch.equal(middle, torch.tensor(values[10:50, 5:45]).permute(2, 0, 1))


def test_unfit_folders_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        divide_images(tmp_path / "nowhere", RGB)
    for path in sorted(images.iterdir())[:19]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="19 images; give 20 or more"):
        divide_images(tmp_path, RGB)
    Image.new("RGB", (60, 31)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match=r"small.png: 60 x 31 pixels; each side must have 32"):
        divide_images(tmp_path, RGB)


def test_a_file_that_is_no_image_is_named(images: Path, tmp_path: Path) -> None:
    for path in images.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken.png: not an image"):
        divide_images(tmp_path, RGB)
