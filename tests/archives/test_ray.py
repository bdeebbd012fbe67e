"""A cluster of two nodes on this machine maps an archive to the same bytes, also when an actor is killed."""

import threading
import time
from contextlib import suppress

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from ccsegformer.archives.run import map_scenes
from ccsegformer.errors import CCSegformerError, CheckpointError
from tests.archives.test_map import contents, mapped, model, scenes, whole  # noqa: F401


@pytest.fixture(scope="module")
def address():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def test_a_cluster_writes_the_same_bytes(address, model, scenes, whole, tmp_path):  # noqa: F811
    output = tmp_path / "maps"
    results = mapped(model, scenes, output, address=address, workers=2, polygons=True)
    assert {result.status for result in results.values()} == {"mapped"}
    assert contents(output) == contents(whole)


def test_a_killed_actor_loses_nothing(address, model, scenes, whole, tmp_path):  # noqa: F811
    output, killed, done = tmp_path / "maps", [], threading.Event()

    def kill_one() -> None:
        while not done.is_set():
            for process in psutil.Process().children(recursive=True):  # of this test's cluster alone
                with suppress(psutil.Error):
                    if process.name().startswith("ray::_SceneActor"):
                        process.kill()
                        killed.append(process.pid)
                        return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    results = mapped(model, scenes, output, address=address, workers=2, polygons=True)
    done.set()
    killer.join()
    assert killed
    assert {result.status for result in results.values()} == {"mapped"}
    assert contents(output) == contents(whole)


def test_a_model_that_no_actor_can_open_ends_the_run(address, scenes, tmp_path):  # noqa: F811
    with pytest.raises(CheckpointError, match="nowhere"):
        mapped(tmp_path / "nowhere", scenes, tmp_path / "maps", address=address)


def test_an_address_without_a_cluster_is_named(model, scenes, tmp_path, monkeypatch):  # noqa: F811
    def refuse(**options):  # as Ray does, after a minute
        raise ConnectionError(f"Failed to connect to\n{options['address']}")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(CCSegformerError, match=r"^127.0.0.1:1: no Ray cluster answers there: Failed to conn"):
        list(map_scenes(model, [scenes], tmp_path / "maps", address="127.0.0.1:1"))
