"""Compare what runs over an archive write, undisturbed and under random kills: see `benchmarks.archives`."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.archive_runs import contents, start, write_scenes

WORKERS = ("spawn_main", "ray::_SceneActor")
"""In the command lines of worker processes and of Ray actors."""
SCENES = 200


def same(folder: Path) -> None:
    """Map an archive by one worker, two, four shards at once, and a Ray cluster of two nodes."""
    write_scenes(folder / "scenes", SCENES, 256)
    _finish(folder, folder / "whole", {"workers": 1})
    ways: dict[str, list[dict[str, Any]]] = {
        "2 workers": [{"workers": 2}],
        "4 shards at once": [{"workers": 1, "shard": [index, 4]} for index in range(4)],
    }
    for name, runs in ways.items():
        _finish(folder, folder / name, *runs)
        _print_comparison(f"{SCENES} scenes, {name}", folder / "whole", folder / name)
    with two_nodes() as address:
        _finish(folder, folder / "ray", {"workers": 2, "address": address})
    _print_comparison(f"{SCENES} scenes, a Ray cluster of two nodes", folder / "whole", folder / "ray")


def kills(folder: Path, number: int = 50) -> None:
    """Kill a worker or the run at random moments, until an archive is whole; then begin another."""
    _kill(folder, number, {"workers": 2})


def ray_kills(folder: Path, number: int = 50) -> None:
    """Kill an actor or the driver of a Ray cluster of two nodes in the same way."""
    with two_nodes() as address:
        _kill(folder, number, {"workers": 2, "address": address})


@contextmanager
def two_nodes() -> Iterator[str]:
    """Start a Ray cluster of two nodes of one CPU each on this machine; yield its address."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


def _finish(folder: Path, output: Path, *runs: dict[str, Any]) -> None:
    """Map an archive by runs side by side."""
    processes = [start(folder, output, window=64, **options) for options in runs]
    assert [process.wait() for process in processes] == [0] * len(processes)


def _print_comparison(name: str, whole: Path, output: Path) -> None:
    found, expected = contents(output), contents(whole)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    equal = sum(found[key] == content for key, content in expected.items())
    print(f"| {name} | {equal} of {len(expected)} files the same bytes |", flush=True)


def _kill(folder: Path, number: int, options: dict[str, Any]) -> None:
    write_scenes(folder / "scenes", SCENES, 256)
    _finish(folder, folder / "whole", {"workers": 2})
    killed, chance, archives = Counter[str](), random.Random(0), 0
    while killed.total() < number:
        output = folder / f"output{archives}"
        _map_under_fire(folder, output, chance, killed, options)
        archives += 1
        said = ", ".join(f"{count} of {kind}s" for kind, count in sorted(killed.items()))
        _print_comparison(f"archive {archives}, killed so far: {said}", folder / "whole", output)


def _map_under_fire(
    folder: Path, output: Path, chance: random.Random, killed: Counter[str], options: dict[str, Any]
) -> None:
    """Start a run again and again until it ends by itself; count the kills. Wait for a scene before each."""
    last = 0
    while True:
        process = start(folder, output, window=64, **options)
        while process.poll() is None:
            time.sleep(5 + 8 * chance.random())
            done = len(list(output.glob("scenes/*/*.json")))
            if process.poll() is not None or done in (last, SCENES):
                continue
            workers = _workers()
            kind = "worker" if workers and chance.random() < 0.7 else "run"
            with suppress(ProcessLookupError):
                os.kill(chance.choice(workers) if kind == "worker" else process.pid, signal.SIGKILL)
                killed[kind] += 1
            last = done
        if process.wait() == 0:
            return


def _workers() -> list[int]:
    """Return the processes that this one, its runs or its cluster have started to map scenes."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if any(sign in " ".join(process.cmdline()) for sign in WORKERS):
                found.append(process.pid)
    return found
