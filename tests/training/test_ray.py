"""The script of docs/distributed.md: Ray Train's workers train as one process, also when one is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from ccsegformer.training.recipe import Recipe, save_recipe
from ccsegformer.training.trainer import train
from tests.training.test_distributed import assert_close

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"


def test_ray_train_goes_on_after_a_worker_is_killed(
    tmp_path: Path, data: Path, recipe: Callable[..., Recipe]
) -> None:
    ten_steps = recipe(training={"steps": 10, "accumulation": 2, "save_steps": 2})
    save_recipe(ten_steps, tmp_path / "recipe.yaml")
    [script] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "script.py").write_text(script)
    arguments = [tmp_path / "script.py", tmp_path / "recipe.yaml", data, tmp_path / "two"]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen([sys.executable, *map(str, arguments)], stdout=log, stderr=log)
        try:
            victim = wait_for_worker(run, tmp_path / "two" / "checkpoint-2")
            os.kill(victim, signal.SIGKILL)
            assert run.wait(timeout=240) == 0, (tmp_path / "log").read_text()
        finally:
            run.kill()
    train(ten_steps, data, tmp_path / "one")
    assert_close(tmp_path / "two", tmp_path / "one")


def wait_for_worker(run: subprocess.Popen[bytes], checkpoint: Path) -> int:
    """Wait until the run has saved a checkpoint, and return the process of one of its workers."""
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = psutil.Process(run.pid).children(recursive=True)
    return next(worker.pid for worker in workers if worker.name().startswith("ray::RayTrain"))
