"""Map the validation scenes in fresh processes: one measures the time, another the memory.

Such a process is `python -m studies.satellite.mapping seconds|peak_bytes MODEL SCENE OUTPUT WINDOW`.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccsegformer.errors import CCSegformerError
from ccsegformer.evaluation.confusion import compute_metrics, confusion_matrix
from ccsegformer.lab.memory import free_at_once, peak_memory
from ccsegformer.labelling.loading import load_model
from ccsegformer.labelling.scene import predict_scene
from ccsegformer.raster.dataset import TILE, Scenes, tiles
from ccsegformer.raster.read import open_raster, read_box
from studies.runs import write_json

ROOT = Path(__file__).parents[2]


def mapped(folder: Path, scenes: Scenes, window: int) -> dict[str, Any]:
    """Return scores and costs of mapping all scenes; map first unless the results are on disk.

    Maps and results are kept in `folder`. Interrupted maps start over, since they are timed.

    Args:
        folder: Folder of the trained model.
        window: Side of the mapping window, in pixels.
    """
    kept = folder / f"map-{window}"
    if not kept.is_dir():
        aside = folder / f".map-{window}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        costs = []
        matrix = torch.zeros(len(scenes.classes), len(scenes.classes), dtype=torch.int64)
        for number, scene in enumerate(scenes.scenes):
            path = aside / f"{scene.name}.tif"
            costs.append(_map(folder, scene.path, path, window))
            matrix += score(path, scenes, number)
        metrics = compute_metrics(matrix, scenes.classes.names)
        megapixels = sum(scene.height * scene.width for scene in scenes.scenes) / 1e6
        result = {
            "mIoU": metrics.mean_iou,
            "IoU": {name: values["iou"] for name, values in metrics.per_class.items()},
            "confusion": matrix.tolist(),
            "seconds_per_megapixel": sum(cost["seconds"] for cost in costs) / megapixels,
            "peak_bytes": max(cost["peak_bytes"] for cost in costs),
            "device": costs[0]["device"],
            "threads": costs[0]["threads"],
        }
        write_json(result, aside / "map.json")
        aside.rename(kept)
    content: dict[str, Any] = json.loads((kept / "map.json").read_text())
    return content


def score(path: Path, scenes: Scenes, number: int) -> torch.Tensor:
    """Return the confusion matrix, int64 (K, K), of a map of scene `number`, over pixels with data."""
    scene, classes = scenes.scenes[number], scenes.classes
    matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    with open_raster(path) as source:
        for box in tiles(scene.height, scene.width, TILE):
            truth = scenes.sample(number, box, scene.name)["mask"]
            labels = torch.from_numpy(read_box(source, box)[0][0].astype(np.int32))
            matrix += confusion_matrix(truth, labels, len(classes), classes.ignore_index)
    return matrix


def _map(model: Path, scene: Path, output: Path, window: int) -> dict[str, Any]:
    """Map a scene twice; return the seconds, the peak bytes beyond the model, the device and the threads.

    Memory needs a run of its own: its allocator returns everything to the system at once, which takes time.
    """
    again = output.with_stem(f"{output.stem}-again")
    costs: dict[str, Any] = {}
    for measure, path in (("seconds", output), ("peak_bytes", again)):
        places = [str(place.resolve()) for place in (model, scene, path)]
        command = [sys.executable, "-m", "studies.satellite.mapping", measure, *places, str(window)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            killed = "the process was killed, perhaps for lack of memory"
            said = done.stderr.strip().splitlines() if done.returncode > 0 else []
            why = said[-1] if said else killed
            raise CCSegformerError(f"{scene}: cannot be mapped with windows of {window}: {why}")
        costs |= json.loads(done.stdout)
    again.unlink()
    return costs


def main() -> None:
    """Map one scene; print its seconds or its peak bytes beyond the loaded model."""
    measure, folder, scene, output, window = sys.argv[1:]
    model, classes = load_model(folder)

    def run() -> None:
        predict_scene(model, scene, output, classes=classes, window=int(window))

    if measure == "seconds":
        start = time.perf_counter()
        run()
        cost: float = time.perf_counter() - start
    else:
        free_at_once()
        cost = peak_memory(run, model.device.type)
    print(json.dumps({measure: cost, "device": model.device.type, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
