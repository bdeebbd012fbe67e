"""One job at a time in a worker thread, and a queue of those that wait."""

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ccsegformer.errors import CCSegformerError

MAX_WAITING = 16
"""Jobs that may wait; more are refused."""
KEPT = 8
"""Ended jobs whose results are kept; those of older ones are removed."""


class JobCancelled(CCSegformerError):
    """A job was cancelled by the person, or the application closes."""


class QueueFullError(CCSegformerError):
    """Too many jobs wait already."""


@dataclass
class Job:
    """A job and its state, as the page shows it.

    Attributes:
        key: number of the job, in an address.
        title: what it does, for the person.
        state: `done`, `failed` and `cancelled` are final.
        fraction: how much is done, 0 to 1.
        message: what it is doing, or why it failed.
        result: JSON values; may grow while the job runs.
        version: counts the changes of the above.
        folder: where the job keeps its files; removed when it fails, is cancelled, or is one of many.
    """

    key: str
    title: str
    folder: Path
    state: Literal["waiting", "running", "done", "failed", "cancelled"] = "waiting"
    fraction: float = 0.0
    message: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    cancelling: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self.state in ("done", "failed", "cancelled")

    def report(self, fraction: float, message: str = "", **result: Any) -> None:
        """Tell how far the job is; called by its work, in the worker thread.

        Raises:
            JobCancelled: the job is to end.
        """
        self.check()
        with self.changed:
            self.fraction, self.message = fraction, message or self.message
            self.result = {**self.result, **result}
            self._notify()

    def check(self) -> None:
        """Raise JobCancelled if the job is to end; called often by its work."""
        if self.cancelling:
            raise JobCancelled("cancelled")

    def wait(self, seen: int, seconds: float) -> dict[str, Any]:
        """Wait at most so long for news after version `seen`, and return the state as JSON values."""
        with self.changed:
            self.changed.wait_for(lambda: self.version > seen or self.ended, seconds)
            return self.as_json()

    def as_json(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        shown = ("key", "title", "state", "fraction", "message", "result", "version")
        return {name: getattr(self, name) for name in shown}

    def move_to(self, state: Literal["running", "done", "failed", "cancelled"], message: str = "") -> None:
        """Change the state and wake those who wait for it."""
        with self.changed:
            self.state, self.message = state, message
            self.fraction = 1.0 if state == "done" else self.fraction
            self._notify()

    def _notify(self) -> None:
        self.version += 1
        self.changed.notify_all()


JobWork = Callable[[Job], dict[str, Any]]
"""Does the job in the worker thread and returns its result, JSON values. Calls `report` or `check` often."""


class JobQueue:
    """Runs jobs one after another in one thread.

    Args:
        folder: each job gets a folder of its own in it.
        remove: removes a job's folder.
    """

    def __init__(self, folder: Path, remove: Callable[[Path], None]) -> None:
        self.folder, self.remove = folder, remove
        self.jobs: dict[str, Job] = {}
        self._waiting: list[tuple[Job, JobWork]] = []
        self._news = threading.Condition()
        self._numbers = itertools.count(1)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def submit(self, title: str, work: JobWork) -> Job:
        """Queue a job.

        Raises:
            QueueFullError: too many wait.
        """
        with self._news:
            if len(self._waiting) >= MAX_WAITING:
                raise QueueFullError(f"{MAX_WAITING} jobs are waiting: cancel some, or try again later")
            key = str(next(self._numbers))
            job = Job(key, title, self.folder / key)
            self.jobs[key] = job
            self._waiting.append((job, work))
            self._news.notify()
        return job

    def cancel(self, job: Job) -> None:
        """End a job: at once if it waits, else when its work asks."""
        with self._news:
            job.cancelling = True
            waits = any(other is job for other, _ in self._waiting)
            self._waiting = [pair for pair in self._waiting if pair[0] is not job]
        if waits:
            job.move_to("cancelled")

    def close(self) -> None:
        """Cancel all jobs and wait for the one at work to end."""
        with self._news:
            self._closing = True
            for job in self.jobs.values():
                job.cancelling = True
            left, self._waiting = self._waiting, []
            self._news.notify()
        for job, _ in left:
            job.move_to("cancelled")
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                job, work = self._waiting.pop(0)
            job.move_to("running")
            self._do(job, work)
            self._forget_old()

    def _do(self, job: Job, work: JobWork) -> None:
        try:
            job.check()
            job.folder.mkdir(parents=True)
            result = work(job)
            job.check()
        except JobCancelled:
            self.remove(job.folder)
            job.move_to("cancelled")
        except Exception as error:  # whatever a model raises: the page must say it and the next job must run
            self.remove(job.folder)
            reason = " ".join(str(error).split())
            job.move_to(
                "failed",
                reason if isinstance(error, CCSegformerError) else f"{type(error).__name__}: {reason}",
            )
        else:
            with job.changed:
                job.result = result
            job.move_to("done")

    def _forget_old(self) -> None:
        with self._news:
            ended = [job for job in self.jobs.values() if job.ended]
            for job in ended[:-KEPT]:
                del self.jobs[job.key]
        for job in ended[:-KEPT]:
            self.remove(job.folder)
