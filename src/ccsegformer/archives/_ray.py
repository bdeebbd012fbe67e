"""Workers as actors of a Ray cluster, on any number of machines."""

from typing import Any

import ray
from ray.exceptions import RayActorError

from ccsegformer.archives.job import ArchiveJob, SceneResult
from ccsegformer.archives.reference import SceneReference
from ccsegformer.archives.worker import SceneMapper, open_mapper
from ccsegformer.archives.workers import Death
from ccsegformer.errors import CCSegformerError


class _SceneActor:
    """Opens the model with its first scene, so that an error in that comes back as an answer."""

    def __init__(self, job: ArchiveJob, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._job = job
        self._mapper: SceneMapper | None = None

    def map(self, scene: SceneReference) -> SceneResult | CCSegformerError:
        """Map a scene; return the error that would befall every scene."""
        try:
            self._mapper = self._mapper or open_mapper(self._job)
            return self._mapper.map(scene)
        except CCSegformerError as error:
            return error


class RayWorkers:
    """Actors of a Ray cluster; one that dies, or whose node does, is replaced when its place is needed.

    Ray neither restarts actors nor repeats their calls here: the run gives the scene to another actor, and
    counts. A call's argument and result are a scene's reference and a few numbers.

    Args:
        job: What to do with each scene.
        count: Number of actors; by default what the cluster has room for now.
        address: See `ray.init`.
        threads: CPUs of each actor.
        gpu_share: GPUs of each actor, if the cluster has any.
    """

    def __init__(
        self, job: ArchiveJob, count: int | None, *, address: str, threads: int, gpu_share: float
    ) -> None:
        self._started = not ray.is_initialized()
        if self._started:
            try:
                ray.init(address=address, log_to_driver=False, logging_level="warning")
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise CCSegformerError(
                    f"{address}: no Ray cluster answers there: {reason}; for one that asks for a token, set "
                    "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
                ) from error
        found = ray.cluster_resources()
        gpus = found.get("GPU", 0)
        room = gpus / gpu_share if gpus else found.get("CPU", 1) / threads
        self.count = count or max(1, int(room))
        environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        self._actor: Any = ray.remote(
            num_cpus=threads,
            num_gpus=gpu_share if gpus else 0,
            max_restarts=0,
            max_task_retries=0,
            runtime_env=environment,
        )(_SceneActor)
        self._arguments = ray.put(job), threads
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, SceneReference]] = {}

    def submit(self, scene: SceneReference) -> None:
        """Give a scene to an idle actor, or to a new one."""
        actor = self._idle.pop() if self._idle else self._actor.remote(*self._arguments)
        self._busy[actor.map.remote(scene)] = actor, scene

    def finished(self) -> list[SceneResult | Death]:
        """Wait for one result."""
        [done], _ = ray.wait(list(self._busy), num_returns=1)
        actor, scene = self._busy.pop(done)
        try:
            answer = ray.get(done)
        except RayActorError as error:
            ray.kill(actor)  # it may only be out of reach, and must not write beside its successor
            return [Death(scene, f"its actor died: {' '.join(str(error).split())}")]
        if isinstance(answer, Exception):
            raise answer
        self._idle.append(actor)
        return [answer]

    def close(self) -> None:
        """Kill the actors, and disconnect if this run has connected."""
        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)
        self._idle, self._busy = [], {}
        if self._started:
            ray.shutdown()
