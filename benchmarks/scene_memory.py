"""Measure the peak memory of mapping a small and a large scene: `python -m benchmarks.scene_memory [MODEL]`.

The scenes have 8,192 x 4,096 and 40,000 x 40,000 pixels; each is mapped in a fresh process, as a file, and
from a server on the loopback that waits 50 ms before each answer. The default model is an untrained
SegFormer-B0 with nine classes, which needs the same memory as a trained one.

The small scene is full, the large one sparse: data are in its first row and column of blocks, so that a row
and a column of windows are labelled from end to end, and in a random two-hundredth of the others. Windows
without data are read and skipped.
"""

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from benchmarks.remote_reads import SlowServer

BLOCK = 512
DELAY = 0.05
"""Seconds before each answer of the server."""
SCENES = {"8192 x 4096": (4096, 8192, 1.0), "40000 x 40000": (40000, 40000, 0.005)}
OPTIONS = {"window": 1024, "overlap": 128}

RUN = """
import json, re, sys, time
from pathlib import Path
import torch
from ccsegformer import load_model, predict_scene
from ccsegformer.data.labels import Classes
from ccsegformer.lab.memory import free_at_once
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
scene, output, options, *named = sys.argv[1:]
free_at_once()
if named:
    model, classes = load_model(named[0], device="cpu")
else:
    model = CrissCrossSegformerForSemanticSegmentation(CrissCrossSegformerConfig.mit("b0", num_labels=9))
    classes = Classes(tuple(f"class {index}" for index in range(9)))
start = time.monotonic()
predict_scene(model, scene, output, classes=classes, progress=True, **json.loads(options))
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"seconds": time.monotonic() - start, "peak": peak}))
"""


def write_scene(path: Path, height: int, width: int, share: float, seed: int = 0) -> float:
    """Write a sparse RGB scene with data in its first row and column of blocks and in a share of the others.

    Returns:
        Share of all blocks that have data.
    """
    generator = np.random.default_rng(seed)
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8", "nodata": 0}
    profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate"}
    profile |= {"sparse_ok": True, "bigtiff": "yes", "interleave": "pixel"}
    profile |= {"crs": "EPSG:32632", "transform": rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
    written, total = 0, 0
    with rasterio.open(path, "w", **profile) as target:
        for top in range(0, height, BLOCK):
            for left in range(0, width, BLOCK):
                total += 1
                if top and left and generator.random() >= share:
                    continue
                written += 1
                window = Window(left, top, min(BLOCK, width - left), min(BLOCK, height - top))
                size = (3, window.height // 8 + 1, window.width // 8 + 1)
                coarse = generator.integers(1, 256, size, dtype=np.uint8)
                pixels = coarse.repeat(8, axis=1).repeat(8, axis=2)
                target.write(pixels[:, : window.height, : window.width], window=window)
    return written / total


def print_peak(name: str, scene: str, output: Path, found: float) -> int:
    """Map a scene in a fresh process, print a line, and return the peak in bytes."""
    command = [sys.executable, "-c", RUN, scene, str(output), json.dumps(OPTIONS), *sys.argv[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    minutes, peak = result["seconds"] / 60, int(result["peak"])
    print(f"| {name} | {found:.0%} | {minutes:.1f} | {peak / 1e6:.0f} |", flush=True)
    return peak


def main() -> None:
    """Map the scenes and print their peaks."""
    print("| scene | blocks with data | minutes | peak memory, MB |\n|---|---:|---:|---:|")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        server = SlowServer(Path(folder), DELAY)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for number, (name, (height, width, share)) in enumerate(SCENES.items()):
            scene, output = Path(folder) / f"{number}.tif", Path(folder) / "map.tif"
            found = write_scene(scene, height, width, share)
            peaks.append(print_peak(name, str(scene), output, found))
            address = f"/vsicurl/http://127.0.0.1:{server.server_port}/{number}.tif"
            print_peak(f"{name}, from a server", address, Path(folder) / "remote.tif", found)
    print(f"\nThe large scene takes {peaks[1] / peaks[0]:.3f} times the memory of the small one.")


if __name__ == "__main__":
    main()
