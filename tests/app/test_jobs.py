"""The queue: one job at a time, in order; ends, failures and folders."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccsegformer.app import jobs
from ccsegformer.app.jobs import Job, JobQueue, QueueFullError
from ccsegformer.errors import DataError

PATIENCE = 30.0  # seconds until a test gives up; never reached


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    opened = JobQueue(tmp_path / "jobs", lambda path: shutil.rmtree(path, ignore_errors=True))
    yield opened
    opened.close()


def end_of(job: Job) -> Job:
    while not job.ended:
        job.wait(job.version, PATIENCE)
    return job


class Gate:
    """Work that begins, then waits until it may go on."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self, job: Job) -> dict[str, object]:
        (job.folder / "file").write_text("x")
        self.begun.set()
        assert self.open.wait(PATIENCE)
        job.check()
        return {"done": True}


def test_jobs_run_one_at_a_time_in_order(queue: JobQueue) -> None:
    gate, order = Gate(), []
    first = queue.submit("first", gate)
    rest = [queue.submit(str(number), lambda job: {"at": order.append(job.title)}) for number in range(3)]
    assert gate.begun.wait(PATIENCE)
    assert (first.state, [job.state for job in rest]) == ("running", ["waiting"] * 3)
    gate.open.set()
    assert [end_of(job).state for job in (first, *rest)] == ["done"] * 4
    assert order == ["0", "1", "2"]
    assert first.result == {"done": True} and first.fraction == 1


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_when_it_asks(queue: JobQueue) -> None:
    gate = Gate()
    running, waiting = queue.submit("running", gate), queue.submit("waiting", lambda job: {})
    assert gate.begun.wait(PATIENCE)
    queue.cancel(waiting)
    assert waiting.state == "cancelled"
    queue.cancel(running)
    assert running.state == "running" and running.folder.is_dir()
    gate.open.set()
    assert end_of(running).state == "cancelled"
    assert not running.folder.exists()
    queue.cancel(running)  # nothing to cancel
    assert end_of(queue.submit("next", lambda job: {})).state == "done"


def test_a_failure_is_told_and_the_next_job_runs(queue: JobQueue) -> None:
    def wrong(job: Job) -> dict[str, object]:
        (job.folder / "half.tif").write_text("x")
        raise DataError("a.png: damaged")

    def broken(job: Job) -> dict[str, object]:
        raise ZeroDivisionError("by\nzero")

    failed = [end_of(queue.submit("a", work)) for work in (wrong, broken)]
    assert [(job.state, job.message) for job in failed] == [
        ("failed", "a.png: damaged"),
        ("failed", "ZeroDivisionError: by zero"),
    ]
    assert not failed[0].folder.exists()
    assert end_of(queue.submit("next", lambda job: {})).state == "done"


def test_too_many_waiting_jobs_are_refused(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_WAITING", 2)
    gate = Gate()
    queue.submit("running", gate)
    assert gate.begun.wait(PATIENCE)
    queue.submit("1", gate)
    queue.submit("2", gate)
    with pytest.raises(QueueFullError, match="2 jobs are waiting"):
        queue.submit("3", gate)
    gate.open.set()


def test_results_of_old_jobs_are_removed(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "KEPT", 2)
    gate = Gate()
    gate.open.set()
    done = [end_of(queue.submit(str(number), gate)) for number in range(4)]
    end_of(queue.submit("last", gate))
    assert not done[0].folder.exists() and not done[1].folder.exists()
    assert done[0].key not in queue.jobs and done[3].key in queue.jobs


def test_news_come_with_each_report(queue: JobQueue) -> None:
    gate = Gate()

    def work(job: Job) -> dict[str, object]:
        job.report(0.5, "half", rows=1)
        return gate(job)

    job = queue.submit("work", work)
    assert gate.begun.wait(PATIENCE)
    news = job.wait(-1, 0)
    assert (news["fraction"], news["message"], news["result"]) == (0.5, "half", {"rows": 1})
    assert job.wait(news["version"], 0)["version"] == news["version"]  # none yet
    gate.open.set()
    assert job.wait(news["version"], PATIENCE)["state"] == "done"


def test_closing_cancels_what_runs_and_waits(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, lambda path: shutil.rmtree(path, ignore_errors=True))
    begun = threading.Event()

    def endless(job: Job) -> dict[str, object]:
        begun.set()
        while True:
            job.check()

    running, waiting = queue.submit("running", endless), queue.submit("waiting", endless)
    assert begun.wait(PATIENCE)
    queue.close()
    assert (running.state, waiting.state) == ("cancelled", "cancelled")
    assert not running.folder.exists()
