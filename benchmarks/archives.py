"""Measure `map_scenes` on generated scenes: overhead, scaling, memory, and what is left after random kills.

    python -m benchmarks.archives overhead        # against a plain loop over predict_scene
    python -m benchmarks.archives scaling         # 1 and 2 workers of one thread each
    python -m benchmarks.archives same            # 200 scenes by 1 and 2 workers, 4 shards, a Ray cluster
    python -m benchmarks.archives kills           # 50 random kills of workers and of the run
    python -m benchmarks.archives ray_kills       # the same of Ray's actors and their driver
    python -m benchmarks.archives memory          # of the run, with 100 and 10,000 stub scenes
    python -m benchmarks.archives tables          # 5,000 stub items, 20 ms each; 5,000 lines of logs
    python -m benchmarks.archives ray             # Ray Core's actors and Ray Data: 60 stub scenes of 0.2 s

Each prints lines of Markdown. Two cores are needed, and nothing else at work on them, except for `same` and
the kills.
"""

import argparse
import json
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.archive_faults import kills, ray_kills, same
from benchmarks.archive_runs import start, write_model, write_scenes
from ccsegformer.archives import store
from ccsegformer.archives.job import SceneResult
from ccsegformer.archives.reference import SceneAsset, SceneReference
from ccsegformer.archives.run import share_out
from ccsegformer.archives.store import Store, open_store
from ccsegformer.archives.tables import write_tables
from ccsegformer.archives.workers import Death
from ccsegformer.labelling.loading import load_engine
from ccsegformer.labelling.scene import predict_scene


def overhead(folder: Path) -> None:
    """Compare one worker, two threads, with a plain loop in one process: 12 scenes of 2560 x 2560."""
    write_scenes(folder / "scenes", 12, 2560)
    torch.set_num_threads(2)
    begun = time.monotonic()
    engine, classes = load_engine(folder / "model")
    (folder / "loop").mkdir()
    for path in sorted((folder / "scenes").iterdir()):
        predict_scene(engine, path, folder / "loop" / path.name, classes=classes)
    loop = time.monotonic() - begun
    mapped = timed(folder, "mapped", workers=1, threads=2)
    print(f"| plain loop | {loop:.0f} s | {loop / 12:.1f} s a scene | |")
    print(
        f"| map_scenes, 1 worker | {mapped:.0f} s | {mapped / 12:.1f} s a scene | {mapped / loop - 1:+.1%} |"
    )


def scaling(folder: Path) -> None:
    """Compare two workers with one, one thread each: 16 scenes of 2048 x 2048."""
    write_scenes(folder / "scenes", 16, 2048)
    one = timed(folder, "one", workers=1, threads=1)
    two = timed(folder, "two", workers=2, threads=1)
    print(f"| 1 worker {one:.0f} s | 2 workers {two:.0f} s | {one / two:.2f}x |")


def timed(folder: Path, output: str, *, workers: int, threads: int) -> float:
    """Time a run in a process of its own."""
    begun = time.monotonic()
    assert start(folder, folder / output, threads, workers=workers).wait() == 0
    return time.monotonic() - begun


class StubWorkers:
    """Maps nothing, at once."""

    count = 8

    def __init__(self) -> None:
        self.at_work: list[SceneReference] = []

    def submit(self, scene: SceneReference) -> None:
        """Take a scene."""
        self.at_work.append(scene)

    def finished(self) -> list[SceneResult | Death]:
        """Give one back."""
        return [SceneResult(self.at_work.pop(), "mapped")]

    def close(self) -> None:
        """Do nothing."""


def memory(folder: Path) -> None:
    """Print the run's peak memory after 100 and after 10,000 scenes."""

    def scenes(number: int) -> Iterator[SceneReference]:
        return (SceneReference(f"s{i}", (SceneAsset(f"/data/s{i}.tif"),)) for i in range(number))

    for number in (100, 10_000):
        results = share_out(StubWorkers(), scenes(number), open_store(folder / "maps"), 3)
        count = sum(1 for _ in results)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {count:,} scenes | {peak:.0f} MB |")


class SlowStore(Store):
    """A folder that takes 20 ms for each read, as an object store does."""

    def get(self, key: str) -> bytes | None:
        """Wait, then read."""
        time.sleep(0.02)
        return super().get(key)


def tables(folder: Path, number: int = 5000) -> None:
    """Write the tables of stub items with one reader and with all, then logs."""
    write_scenes(folder / "scenes", 1, 256)
    assert start(folder, folder / "maps", window=64, workers=1).wait() == 0
    item = json.loads((folder / "maps/scenes/s0000/s0000.json").read_bytes())
    maps, seconds, readers = SlowStore(str(folder / "maps")), [], store.READS_AT_ONCE
    for name in (f"s{index:04}" for index in range(number)):
        maps.put(f"scenes/{name}/{name}.json", json.dumps(item | {"id": name}).encode())
    for count in (1, readers):
        store.READS_AT_ONCE = count
        begun = time.monotonic()
        write_tables(maps)
        seconds.append(time.monotonic() - begun)
        print(f"| {number:,} items, read {count} at a time | {seconds[-1]:.1f} s |", flush=True)
    print(f"| {readers} at a time | {seconds[0] / seconds[1]:.1f} times as fast |")
    _compare_logs(Store(str(folder / "logs")), number)


def _compare_logs(logs: Store, number: int) -> None:
    """Write two lines for each scene, first by writing logs whole, then by adding lines."""
    line, seconds = b"x" * 100 + b"\n", []
    for append in (lambda key, line: logs.put(key, (logs.get(key) or b"") + line), logs.append):
        begun = time.monotonic()
        for index in range(number):
            append(f"scenes/s{index // 2}/s{index // 2}.log", line)
        seconds.append(time.monotonic() - begun)
        shutil.rmtree(logs.address)
    print(f"| {number:,} lines of logs, added | {seconds[0] / seconds[1]:.1f} times as fast as whole |")


def compare_ray(folder: Path, number: int = 60) -> None:
    """Give stub scenes to two actors of one CPU each on two CPUs, through Ray Core and through Ray Data."""
    import ray

    class Mapper:
        def map(self, scene: int) -> int:
            time.sleep(0.2)
            return scene

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"id": np.array([self.map(scene) for scene in batch["id"]])}

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    begun = time.monotonic()
    actors = [ray.remote(num_cpus=1)(Mapper).remote() for _ in range(2)]
    pool = ray.util.ActorPool(actors)
    done = len(list(pool.map_unordered(lambda actor, scene: actor.map.remote(scene), list(range(number)))))
    print(f"| Ray Core | {done} of {number} scenes | {time.monotonic() - begun:.0f} s |", flush=True)
    for actor in actors:
        ray.kill(actor)
    scenes = ray.data.range(number, override_num_blocks=number)
    begun, done, limit = time.monotonic(), 0, 120
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError()))
    signal.alarm(limit)
    with suppress(TimeoutError):
        for _ in scenes.map_batches(Mapper, batch_size=1, concurrency=2, num_cpus=1).iter_rows():
            done += 1
    signal.alarm(0)
    print(f"| Ray Data | {done} of {number} scenes | {time.monotonic() - begun:.0f} s |", flush=True)
    ray.shutdown()


MEASURES: dict[str, Callable[[Path], None]] = {
    "overhead": overhead,
    "scaling": scaling,
    "same": same,
    "kills": kills,
    "ray_kills": ray_kills,
    "memory": memory,
    "tables": tables,
    "ray": compare_ray,
}


def main() -> None:
    """Run the measurements that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("measures", nargs="+", choices=MEASURES)
    for name in parser.parse_args().measures:
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder, "model"))
            MEASURES[name](Path(folder))


if __name__ == "__main__":
    main()
