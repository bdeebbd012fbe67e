"""Random windows of scenes, their determinism, and band statistics."""

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ccsegformer.data.pixels import BandStatistics
from ccsegformer.data.stream import TrainingStream, collate
from ccsegformer.data.transforms import (
    HorizontalFlip,
    RandomCrop,
    RandomResize,
    Rotate90,
    Transform,
    VerticalFlip,
)
from ccsegformer.errors import DataError
from ccsegformer.raster import random_windows as scene_windows
from ccsegformer.raster.dataset import Scenes
from ccsegformer.raster.random_windows import RandomWindows, band_statistics

# Newer Pythons warn of every fork in a process with threads, and PyTorch always has some.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def add(
    root: Path, name: str, values: NDArray[np.generic], labels: NDArray[np.uint8], **profile: Any
) -> None:
    """Write a scene (bands, H, W) and its mask (H, W) where no other scene is."""
    root.mkdir(parents=True, exist_ok=True)
    grid = Affine(1.0, 0, 500_000 + 10_000 * len(list(root.iterdir())), 0, -1.0, 5_000_000)
    for path, array in ((f"{name}.tif", values), (f"{name}_mask.tif", labels[None])):
        bands, height, width = array.shape
        more = profile if array is values else {}
        shape = {"count": bands, "height": height, "width": width, "dtype": array.dtype} | more
        with rasterio.open(
            root / path, "w", driver="GTiff", crs="EPSG:32633", transform=grid, **shape
        ) as target:
            target.write(array)


def positions(height: int, width: int) -> NDArray[np.uint16]:
    """Return two bands that hold the row and column of each pixel."""
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype(np.uint16)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_windows_cover_the_whole_scene(tmp_path: Path) -> None:
    add(tmp_path / "training", "a", positions(200, 90), np.zeros((200, 90), np.uint8))
    add(tmp_path / "training", "b", positions(30, 300) + np.uint16(1000), np.zeros((30, 300), np.uint8))
    windows = RandomWindows(Scenes(tmp_path), size=64)
    assert len(windows) == 4 * 2 + 1 * 5  # as many as tile the scenes
    corners = set()
    for seed in range(300):
        sample = windows.draw(seed % 8, seeded(seed))
        assert sample["image"].shape == (2, 64, 64) and sample["mask"].shape == (64, 64)
        top, left = (int(position) for position in sample["image"][:, 0, 0])
        assert sample["name"] == f"a_{top}_{left}"
        np.testing.assert_array_equal(sample["image"][0, :, 0], np.arange(top, top + 64))
        corners.add((top, left))
    assert len(corners) > 250
    tops, lefts = zip(*corners, strict=True)
    assert min(tops) < 5 and max(tops) > 131 and {min(lefts), max(lefts)} == {0, 26}
    small = windows.draw(10, seeded(0))  # a side smaller than the window is taken whole
    assert small["image"].shape == (2, 30, 64) and small["name"].startswith("b_0_")


CHAIN: list[Transform] = [
    RandomResize(),
    RandomCrop(sizes=(40,)),
    HorizontalFlip(),
    VerticalFlip(),
    Rotate90(),
]


def stream(root: Path, seed: int = 3) -> TrainingStream:
    scenes = Scenes(root)
    windows = RandomWindows(scenes, size=48, rare_classes=0.5)
    return TrainingStream(windows, CHAIN, seed=seed, length=24, statistics=band_statistics(scenes))


@pytest.fixture
def two_scenes(tmp_path: Path) -> Path:
    labels = (np.arange(150 * 130).reshape(150, 130) % 2).astype(np.uint8)
    for name in ("a", "b"):
        add(tmp_path / "training", name, positions(150, 130) + np.uint16(500 * (name == "b")), labels)
    return tmp_path


@forks
@pytest.mark.parametrize("workers", [1, 2])
def test_samples_depend_on_seed_and_index_only(workers: int, two_scenes: Path) -> None:
    alone = stream(two_scenes)
    forwards = [alone[n]["pixel_values"] for n in range(24)]
    other = pickle.loads(pickle.dumps(stream(two_scenes)))
    for n in reversed(range(24)):
        assert torch.equal(forwards[n], other[n]["pixel_values"])
    assert not all(
        a.shape == b["pixel_values"].shape and torch.equal(a, b["pixel_values"])
        for a, b in zip(forwards, stream(two_scenes, seed=4), strict=False)
    )
    join = partial(collate, ignore_index=255)
    batches = [
        list(DataLoader(alone, batch_size=4, collate_fn=join, num_workers=count)) for count in (0, workers)
    ]
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one["pixel_values"], two["pixel_values"]) and torch.equal(
            one["labels"], two["labels"]
        )


def test_epochs_differ_and_mix_scenes(two_scenes: Path) -> None:
    windows = RandomWindows(Scenes(two_scenes), size=64)
    assert len(windows) == 18
    statistics = BandStatistics((0.0, 0.0), (1.0, 1.0))
    run = TrainingStream(windows, [], seed=0, length=36, statistics=statistics)
    scenes = [run.dataset.draw(run.source(n), seeded(n))["name"][0] for n in range(18)]
    assert scenes.count("a") == scenes.count("b") == 9 and scenes[:9].count("a") not in (0, 9)
    seen = {run[n]["pixel_values"].numpy().tobytes() for n in range(36)}
    assert len(seen) == 36


def test_share_of_windows_centred_on_rare_classes(tmp_path: Path) -> None:
    common, rare = np.zeros((700, 700), np.uint8), np.zeros((300, 300), np.uint8)
    rare[200:203, 290:292] = 2
    rare[:10, :10] = 1
    rare[10:20, :10] = 255
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["a", "b", "c", "d"], "ignore_index": 255}))
    add(tmp_path / "training", "a", positions(700, 700), common)
    add(tmp_path / "training", "b", positions(300, 300), rare)
    for share in (0.0, 0.6, 1.0):
        windows = RandomWindows(Scenes(tmp_path), size=32, rare_classes=share)
        met = {1: 0, 2: 0}
        for seed in range(300):
            mask = windows.draw(seed % len(windows), seeded(seed))["mask"]
            assert mask.shape == (32, 32)
            for label in met:
                met[label] += bool((mask == label).any())
        for count in met.values():
            assert count / 300 == pytest.approx(share / 3, abs=0.08)  # of three classes that occur


def test_all_pixels_of_a_class_are_equally_likely_centres(tmp_path: Path) -> None:
    labels = np.full((400, 400), 255, np.uint8)
    labels[100:104, 200:210] = 1  # two squares of 64 pixels, unequally full
    add(tmp_path / "training", "a", positions(400, 400), labels)
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["a", "b"], "ignore_index": 255}))
    windows = RandomWindows(Scenes(tmp_path), size=20, rare_classes=1.0)
    centres = [
        tuple(windows.draw(0, seeded(seed))["image"][:, 10, 10].int().tolist()) for seed in range(2000)
    ]
    found, counts = np.unique(centres, axis=0, return_counts=True)
    assert len(found) == 40 and found.min(axis=0).tolist() == [100, 200]
    assert counts.min() > 20 and counts.max() < 85  # 50 each


def test_windows_with_few_labels_are_drawn_again(tmp_path: Path) -> None:
    values = positions(200, 400) + np.uint16(1)
    values[:, :, 200:] = 0
    add(tmp_path / "training", "a", values, np.zeros((200, 400), np.uint8), nodata=0)
    windows = RandomWindows(Scenes(tmp_path), size=50)
    shares = [(windows.draw(0, seeded(seed))["mask"] == 0).float().mean().item() for seed in range(200)]
    assert min(shares) >= 0.5  # fails by chance once in 2 ** 10 windows
    values[:, 60:] = 0
    add(tmp_path / "training", "a", values, np.zeros((200, 400), np.uint8), nodata=0)
    windows = RandomWindows(Scenes(tmp_path), size=190)  # never half labelled: the best of ten draws
    shares = [(windows.draw(0, seeded(seed))["mask"] == 0).float().mean().item() for seed in range(40)]
    assert min(shares) > 0.15 and max(shares) < 0.32


def test_a_scene_without_labelled_pixels_is_a_one_line_error(two_scenes: Path) -> None:
    add(
        two_scenes / "training", "c", np.zeros((2, 40, 40), np.uint16), np.zeros((40, 40), np.uint8), nodata=0
    )
    scenes = Scenes(two_scenes)
    with pytest.raises(DataError) as caught:
        RandomWindows(scenes, size=32)
    assert str(caught.value) == f"{two_scenes}/training/c.tif: has nothing but nodata and unlabelled pixels"


def test_statistics_cover_all_pixels_with_data(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    offsets = np.array([1e5, -40, 7])[:, None, None]  # far from 0, where sums of squares lose precision
    first, second = (offsets + generator.normal(0, s, (3, 700, 520)) for s in (1.0, 5.0))
    second[2] = 7
    first[2] = 7
    first[:, :300] = np.nan
    labels = np.zeros((700, 520), np.uint8)
    add(tmp_path / "training", "a", first.astype(np.float32), labels)
    add(tmp_path / "training", "b", second.astype(np.float32), labels)
    found = band_statistics(Scenes(tmp_path))
    pixels = np.concatenate([first[:, 300:].reshape(3, -1), second.reshape(3, -1)], axis=1)
    pixels = pixels.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(found.means, pixels.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(found.stds[:2], pixels[:2].std(axis=1), rtol=1e-9)
    assert found.stds[2] == 1  # a constant band


def test_statistics_of_many_tiles_use_evenly_spaced_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene_windows, "STATISTICS_TILES", 3)
    monkeypatch.setattr(scene_windows, "TILE", 10)
    values = np.zeros((1, 10, 90), np.float32)
    values[0, :, 0:10], values[0, :, 40:50], values[0, :, 80:90] = 3, 6, 9
    values[0, :, 50:80] = 1000
    add(tmp_path / "training", "a", values, np.zeros((10, 90), np.uint8))
    found = band_statistics(Scenes(tmp_path))
    assert found.means == pytest.approx([6]) and found.stds == pytest.approx([6**0.5])
