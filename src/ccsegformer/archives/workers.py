"""Worker processes of this machine: each opens the model once and maps scene after scene."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from signal import SIG_IGN, SIGINT, signal
from typing import NamedTuple, Protocol

from ccsegformer.archives.job import ArchiveJob, SceneResult
from ccsegformer.archives.reference import SceneReference


class Death(NamedTuple):
    """A worker that ended while it had a scene."""

    scene: SceneReference
    reason: str


class Workers(Protocol):
    """Something that maps scenes side by side."""

    count: int

    def submit(self, scene: SceneReference) -> None:
        """Give a scene to a worker; at most `count` may be at work at once."""

    def finished(self) -> list[SceneResult | Death]:
        """Wait until at least one scene is finished, and return what came of it.

        Raises:
            CCSegformerError: a worker cannot open the model, or cannot write the output.
        """

    def close(self) -> None:
        """Stop all workers, whatever they are doing."""


class _Worker(NamedTuple):
    process: SpawnProcess
    connection: Connection
    slot: int
    """Number of the worker, from 0; decides its GPU."""


class ProcessWorkers:
    """Worker processes; one that dies is replaced when its place is needed.

    Args:
        job: What to do with each scene.
        count: Number of processes.
        threads: Threads of each.
        gpus: Number of this machine's GPUs, which the processes share in turn; 0 to compute on the CPU.
    """

    def __init__(self, job: ArchiveJob, count: int, *, threads: int, gpus: int = 0) -> None:
        self.count = count
        self._job, self._threads, self._gpus = job, threads, gpus
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, SceneReference]] = {}

    def submit(self, scene: SceneReference) -> None:
        """Give a scene to an idle worker, or to a new one."""
        worker = self._idle.pop() if self._idle else self._start()
        self._busy[worker.connection] = worker, scene
        with suppress(OSError):  # dead already; `finished` finds it
            worker.connection.send(scene)

    def finished(self) -> list[SceneResult | Death]:
        """Wait for results; a connection that is closed is a worker that died."""
        results: list[SceneResult | Death] = []
        for connection in wait(list(self._busy)):
            assert isinstance(connection, Connection)
            worker, scene = self._busy.pop(connection)
            try:
                answer = connection.recv()
            except (EOFError, OSError):
                worker.process.join()
                results.append(Death(scene, _cause(worker.process.exitcode)))
                continue
            if isinstance(answer, Exception):
                raise answer
            self._idle.append(worker)
            results.append(answer)
        return results

    def close(self) -> None:
        """End all processes; what they were mapping continues when the run is started again."""
        for worker in [*self._idle, *(worker for worker, _ in self._busy.values())]:
            worker.process.terminate()
            worker.process.join()
            worker.connection.close()
        self._idle, self._busy = [], {}

    def _start(self) -> _Worker:
        taken = {worker.slot for worker, _ in self._busy.values()}
        slot = min(set(range(self.count)) - taken)
        ours, theirs = self._context.Pipe()
        with _environment(self._threads, slot % self._gpus if self._gpus else None):
            process = self._context.Process(
                target=_serve, args=(self._job, theirs, self._threads), name=f"worker {slot}", daemon=True
            )
            process.start()
        theirs.close()
        return _Worker(process, ours, slot)


def _serve(job: ArchiveJob, connection: Connection, threads: int) -> None:
    """Map scenes until the connection closes; an error that would befall every scene is sent and ends it."""
    signal(SIGINT, SIG_IGN)  # the run's own process handles Ctrl-C, and ends this one
    _end_with_parent()
    import torch

    from ccsegformer.archives.worker import open_mapper
    from ccsegformer.errors import CCSegformerError

    torch.set_num_threads(threads)
    try:
        mapper = open_mapper(job)
        while True:
            connection.send(mapper.map(connection.recv()))
    except (EOFError, ConnectionError):  # the run is over
        return
    except CCSegformerError as error:
        connection.send(error)


def _end_with_parent() -> None:
    """End this process at once if the run's own process is killed: a new run may want the same scene."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _environment(threads: int, gpu: int | None) -> Iterator[None]:
    """Set what a child process reads before its first line of ours."""
    wanted = {"OMP_NUM_THREADS": str(threads)} | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _cause(code: int | None) -> str:
    """Say how a process ended."""
    if code is not None and code < 0:
        hint = ", as the system does when memory is short" if code == -9 else ""
        return f"its worker was ended by signal {-code}{hint}"
    return f"its worker ended with exit code {code}"
