"""Scenes, a model, and runs of `map_scenes` in processes of their own, for `benchmarks.archives`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio import Affine

from ccsegformer.archives.run import map_scenes
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

RUN = "import sys; from benchmarks.archive_runs import run; run(*sys.argv[1:])"


def write_scenes(folder: Path, count: int, side: int) -> None:
    """Write RGB scenes of noise in large squares."""
    folder.mkdir()
    for index in range(count):
        coarse = np.random.default_rng(index).integers(0, 255, (3, side // 16, side // 16), np.uint8)
        profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8"}
        place = Affine(0.5, 0, 600000 + index * side, 0, -0.5, 5300000)
        with rasterio.open(
            folder / f"s{index:04}.tif", "w", crs="EPSG:32632", transform=place, tiled=True, **profile
        ) as target:
            target.write(coarse.repeat(16, axis=1).repeat(16, axis=2))


def write_model(folder: Path) -> None:
    """Save a B0 with random weights."""
    torch.manual_seed(0)
    config = CrissCrossSegformerConfig.mit("b0", num_labels=5)
    CrissCrossSegformerForSemanticSegmentation(config).save_pretrained(folder)


def run(model: str, scenes: str, output: str, options: str) -> None:
    """Map an archive to the end, with options of `map_scenes` in JSON."""
    for result in map_scenes(model, [scenes], output, **json.loads(options)):
        assert result.status != "failed", result.reason


def start(folder: Path, output: Path, threads: int = 1, **options: Any) -> subprocess.Popen[bytes]:
    """Begin to map `folder/scenes` with `folder/model` in a process of its own."""
    arguments = [str(folder / "model"), str(folder / "scenes"), str(output), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], env=environment)


def contents(output: Path) -> dict[str, bytes]:
    """Read everything but logs."""
    files = [path for path in output.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}
