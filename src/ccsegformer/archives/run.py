"""Map an archive of scenes: on this machine's cores, on one shard of a job array, or on a Ray cluster."""

import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from ccsegformer.archives.job import ArchiveJob, SceneResult
from ccsegformer.archives.listing import list_scenes
from ccsegformer.archives.reference import SceneReference
from ccsegformer.archives.store import Store, open_store
from ccsegformer.archives.tables import write_tables
from ccsegformer.archives.worker import record_failure, write_log
from ccsegformer.archives.workers import Death, ProcessWorkers, Workers
from ccsegformer.data.labels import Classes
from ccsegformer.errors import CCSegformerError, optional_imports
from ccsegformer.labelling.budget import MEMORY, parse_memory
from ccsegformer.labelling.engine import EngineName, Precision
from ccsegformer.labelling.preprocess import Preprocessing

THREADS = 2
"""Threads of a worker on a CPU, unless OMP_NUM_THREADS or the number of workers says otherwise."""


def map_scenes(
    model: str | Path | nn.Module,
    scenes: Sequence[str | Path] | Iterable[SceneReference],
    output: str | Path,
    *,
    assets: Sequence[str] = (),
    classes: Classes | None = None,
    preprocessing: Preprocessing | None = None,
    bands: tuple[int, ...] | None = None,
    window: int | None = None,
    overlap: int | None = None,
    memory: int | str = MEMORY,
    confidence: bool = False,
    polygons: bool = False,
    simplify: float | None = None,
    engine: EngineName | None = None,
    precision: Precision | None = None,
    workers: int | None = None,
    address: str | None = None,
    gpu_share: float = 1.0,
    retries: int = 3,
    shard: tuple[int, int] | None = None,
    scratch: str | Path | None = None,
) -> Iterator[SceneResult]:
    """Map scenes side by side, and yield what came of each, in the order in which they finish.

    `OUTPUT/scenes/NAME/` gets a scene's map `NAME.tif`, its polygons `NAME.parquet`, and last its STAC item
    `NAME.json`. A scene is kept if it has an item of the same model, arguments and source, so a run that was
    killed continues when it is started again, and scenes that were in the works continue after their last row
    of windows. A scene that fails is recorded in `OUTPUT/failed/`, and the next run tries it again. At the
    end, `OUTPUT/items.parquet` (stac-geoparquet), `failed.parquet` and `collection.json` list the archive.

    Workers open the model once each. Scenes travel to them by reference, never as pixels.

    Args:
        model: Name or path of a trained model or model file; or a module that can be pickled.
        scenes: What `list_scenes` takes: files, folders, globs, text lists, STAC items, collections and
            search results, stac-geoparquet; or the references themselves.
        output: Folder, or `s3://BUCKET/PREFIX`, `gs://...`, `az://...`.
        assets: Names of the STAC asset or assets to use, see `list_scenes`.
        classes, preprocessing, bands, window, overlap, confidence, simplify, engine, precision: See
            `predict_scene`.
        memory: Memory of each worker, see `predict_scene`.
        polygons: Whether to write the map's regions as GeoParquet.
        workers: Number of scenes to map at once. By default one for each GPU; without GPUs as many as have
            two cores each (or OMP_NUM_THREADS) and fit into memory. On a CPU, workers x threads = cores.
        address: Address of a Ray cluster, such as `auto` or `ray://HOST:10001`; by default none.
        gpu_share: Share of a GPU that a worker takes; below 1, several share one.
        retries: How often a scene is tried again after its server failed or its worker died.
        shard: (i, n) maps every n-th scene from the i-th, from 0, for job arrays that run n of these.
        scratch: Folder for maps on their way to an object store; by default the system's temporary folder.

    Raises:
        CheckpointError, DataError, EngineError: The model cannot be opened, or the scenes not be listed.
        OutputError: The output cannot be written. What is done is kept.
        CCSegformerError: An argument is out of range.
    """
    share = _checked_shard(shard)
    _check_numbers(workers, gpu_share, retries)
    job = ArchiveJob(
        model=model if isinstance(model, nn.Module) else str(model),
        output=_absolute(output),
        classes=classes,
        preprocessing=preprocessing,
        bands=bands,
        window=window,
        overlap=overlap,
        memory=memory,
        confidence=confidence,
        polygons=polygons,
        simplify=simplify,
        engine=engine,
        precision=precision,
        retries=retries,
        scratch=None if scratch is None else str(scratch),
    )
    references = _as_references(scenes, assets)
    store = open_store(job.output)
    pool = _open_workers(job, workers, address, gpu_share)
    try:
        yield from share_out(pool, islice(references, share[0], None, share[1]), store, retries)
    finally:
        pool.close()
    write_tables(store)


def share_out(
    workers: Workers, scenes: Iterable[SceneReference], store: Store, retries: int
) -> Iterator[SceneResult]:
    """Keep all workers at work until no scene is left; a scene whose worker dies is given to another."""
    coming, again, at_work = iter(scenes), deque[SceneReference](), 0
    deaths: Counter[str] = Counter()
    while True:
        while at_work < workers.count:
            scene = again.popleft() if again else next(coming, None)
            if scene is None:
                break
            workers.submit(scene)
            at_work += 1
        if not at_work:
            return
        for result in workers.finished():
            at_work -= 1
            if not isinstance(result, Death):
                yield result
                continue
            name = result.scene.name
            deaths[name] += 1
            write_log(store, result.scene, "died", reason=result.reason)
            if deaths[name] <= retries:
                again.append(result.scene)
            else:
                yield record_failure(store, result.scene, result.reason, deaths.pop(name))


def parse_shard(text: str) -> tuple[int, int]:
    """Parse a shard such as 0/4.

    Raises:
        CCSegformerError: not of that form, or not one of 0/n to n-1/n.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise CCSegformerError(f"shard {text!r}: write it as i/n, such as 0/4 for the first of four")
    return _checked_shard((int(index), int(count)))


def _as_references(
    scenes: Sequence[str | Path] | Iterable[SceneReference], assets: Sequence[str]
) -> Iterator[SceneReference]:
    inputs = list(scenes) if isinstance(scenes, Sequence) else scenes
    if isinstance(inputs, list) and all(isinstance(scene, str | Path) for scene in inputs):
        return list_scenes([str(scene) for scene in inputs], assets=assets)
    return iter(inputs)


def _open_workers(job: ArchiveJob, workers: int | None, address: str | None, gpu_share: float) -> Workers:
    threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    if address is not None:
        with optional_imports("--address"):
            from ccsegformer.archives._ray import RayWorkers

        return RayWorkers(job, workers, address=address, threads=threads or THREADS, gpu_share=gpu_share)
    if gpus := torch.cuda.device_count():
        return ProcessWorkers(
            job, workers or max(1, round(gpus / gpu_share)), threads=threads or THREADS, gpus=gpus
        )
    cores = _cores()
    count = workers or max(1, min(cores // (threads or THREADS), _memory() // parse_memory(job.memory)))
    return ProcessWorkers(job, count, threads=threads or max(1, cores // count))


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _memory() -> int:
    """Return this machine's memory in bytes."""
    if sys.platform == "win32":
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _absolute(output: str | Path) -> str:
    return str(output) if "://" in str(output) else str(Path(output).absolute())


def _checked_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    index, count = shard or (0, 1)
    if not 0 <= index < count:
        raise CCSegformerError(f"shard {index}/{count}: the first of {count} is 0, the last {count - 1}")
    return index, count


def _check_numbers(workers: int | None, gpu_share: float, retries: int) -> None:
    if workers is not None and workers < 1:
        raise CCSegformerError(f"workers must be 1 or more, not {workers}")
    if not 0 < gpu_share <= 1:
        raise CCSegformerError(f"gpu_share must be above 0 and at most 1, not {gpu_share}")
    if retries < 0:
        raise CCSegformerError(f"retries must be 0 or more, not {retries}")
