"""Forked DataLoader workers open rasters themselves.

A forked process has its parent's file offsets and GDAL's caches: what both read through is anyone's guess.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from torch.utils.data import DataLoader, Dataset

from ccsegformer.data.pixels import BandStatistics
from ccsegformer.data.stream import TrainingStream
from ccsegformer.raster.dataset import Scenes
from ccsegformer.raster.random_windows import RandomWindows
from tests.raster.test_dataset import image, write

# Newer Pythons warn about forks in processes with threads, which PyTorch always has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Record which process opened which file, as far as this process knows."""
    found = []
    original = rasterio.open

    def recorded(path: Any, *args: Any, **kwargs: Any) -> Any:
        found.append((os.getpid(), Path(path).name))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(rasterio, "open", recorded)
    return found


class Reads(Dataset[Any]):
    """Samples with the process that read them and the files it has opened so far."""

    def __init__(self, samples: Any, opened: list[tuple[int, str]]) -> None:
        self.samples, self.opened = samples, opened

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, list[str], torch.Tensor]:
        sample = self.samples[index]
        pixels = sample.get("pixel_values", sample.get("image")).as_subclass(torch.Tensor)
        return os.getpid(), sorted(name for process, name in self.opened if process == os.getpid()), pixels


@pytest.mark.parametrize("draws", [False, True])
def test_workers_open_their_own(draws: bool, tmp_path: Path, opened: list[tuple[int, str]]) -> None:
    write(tmp_path / "training" / "a.tif", image(2, "uint16", (600, 1100)))
    # A mask on another grid is read through a warped view.
    labels, grid = np.zeros((1, 300, 40), np.uint8), Affine(60.0, 0, 500_000, 0, -4.0, 5_000_000)
    write(tmp_path / "training" / "a_mask.tif", labels, transform=grid)
    scenes = Scenes(tmp_path)
    samples: Any = scenes
    if draws:
        statistics = BandStatistics((0.0, 0.0), (1.0, 1.0))
        samples = TrainingStream(RandomWindows(scenes, size=64), [], seed=0, length=8, statistics=statistics)
    reads = Reads(samples, opened)
    before = [reads[index] for index in range(len(reads))]
    forked = list(DataLoader(reads, batch_size=None, num_workers=2, multiprocessing_context="fork"))
    assert len({process for process, _, _ in forked} | {os.getpid()}) == 3
    assert all(names == ["a.tif", "a_mask.tif"] for _, names, _ in forked)
    count = len(opened)
    after = [reads[index] for index in range(len(reads))]
    assert len(opened) == count, "this process goes on with its own"
    for one, two, three in zip(before, forked, after, strict=True):
        assert torch.equal(one[2], two[2]) and torch.equal(one[2], three[2])
