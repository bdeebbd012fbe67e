"""Measure what each process of a training reads of scenes: `python -m benchmarks.distributed_reads`.

One process, then two of torchrun, train on windows of generated scenes with the same recipe. Each counts the
pixels that it reads before the first step and in the steps. The windows of the two together must be those of
the one.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio import Affine

SCENES, SIDE, STEPS = 32, 1024, 25
RECIPE = f"""
model: {{size: b0}}
windows: {{size: 128}}
training: {{steps: {STEPS}, batch_size: 2, accumulation: 4, workers: 0}}
"""
RUN = """
import json, os, sys
from pathlib import Path
from typing import Any
import torch
from ccsegformer import load_recipe, train
from ccsegformer.raster.dataset import Scenes
from ccsegformer.raster.random_windows import RandomWindows

read, drawn = {"before": 0, "steps": 0, "windows": []}, []
pixels, draw = Scenes.pixels, RandomWindows.draw

def counted(scenes, number, box):
    read["steps" if drawn else "before"] += box.height * box.width
    return pixels(scenes, number, box)

def noted(windows, index, generator):
    drawn.append(index)
    sample = draw(windows, index, generator)
    read["windows"].append(sample["name"])
    return sample

Scenes.pixels, RandomWindows.draw = counted, noted
folder = Path(sys.argv[1])
train(load_recipe(folder / "recipe.yaml"), folder / "data", folder / sys.argv[2])
name = f"{sys.argv[2]}-{os.environ.get('RANK', '0')}.json"
(folder / name).write_text(json.dumps(read))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def write_data(folder: Path) -> None:
    """Write RGB scenes of noise with masks of two classes."""
    folder.mkdir(parents=True)
    profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "dtype": "uint8", "tiled": True}
    for index in range(SCENES):
        generator = np.random.default_rng(index)
        place = Affine(0.5, 0, 600_000 + index * SIDE, 0, -0.5, 5_300_000)
        mask = generator.integers(0, 2, (1, SIDE // 64, SIDE // 64), np.uint8).repeat(64, 1).repeat(64, 2)
        image = mask * 100 + generator.integers(0, 100, (3, SIDE, SIDE), np.uint8)
        for name, values in ((f"s{index}.tif", image), (f"s{index}_mask.tif", mask)):
            about = profile | {"count": len(values), "crs": "EPSG:32632", "transform": place}
            with rasterio.open(folder / name, "w", **about) as target:
                target.write(values)


def reads(folder: Path, processes: int) -> list[dict[str, Any]]:
    """Train, and return what each process has read."""
    (folder / "run.py").write_text(RUN)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    name = str(processes)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(folder / "run.py"), str(folder), name], check=True, env=environment)
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(processes)]


def main() -> None:
    """Print the megapixels that each process reads, and check that the windows are the same."""
    print("| processes | process | before the first step, MP | in the steps, MP | windows |")
    print("|---:|---:|---:|---:|---:|", flush=True)
    windows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data" / "training")
        (folder / "recipe.yaml").write_text(RECIPE)
        for processes in (1, 2):
            found = reads(folder, processes)
            windows.append(sorted(window for one in found for window in one["windows"]))
            for rank, one in enumerate(found):
                megapixels = " | ".join(f"{one[when] / 1e6:.2f}" for when in ("before", "steps"))
                print(f"| {processes} | {rank} | {megapixels} | {len(one['windows'])} |", flush=True)
    assert windows[0] == windows[1], "other windows"


if __name__ == "__main__":
    main()
