"""Scenes are shared out among stub workers: what is tried again, and how much is kept in memory."""

import json
import tracemalloc
from collections.abc import Iterator

import pytest

from ccsegformer.archives.job import SceneResult
from ccsegformer.archives.reference import SceneAsset, SceneReference
from ccsegformer.archives.run import parse_shard, share_out
from ccsegformer.archives.store import open_store
from ccsegformer.archives.workers import Death
from ccsegformer.errors import CCSegformerError


class StubWorkers:
    """Maps nothing; `deaths` says how often the worker of a scene dies."""

    def __init__(self, count=3, deaths=None):
        self.count, self.deaths, self.at_work, self.most = count, dict(deaths or {}), [], 0

    def submit(self, scene):
        self.at_work.append(scene)
        self.most = max(self.most, len(self.at_work))

    def finished(self):
        scene = self.at_work.pop()
        if self.deaths.get(scene.name, 0):
            self.deaths[scene.name] -= 1
            return [Death(scene, "its worker was ended by signal 9")]
        return [SceneResult(scene, "mapped")]


def references(number: int) -> Iterator[SceneReference]:
    return (SceneReference(f"s{index}", (SceneAsset(f"/data/s{index}.tif"),)) for index in range(number))


def test_every_scene_comes_back_once_and_no_more_than_count_are_at_work(tmp_path):
    workers = StubWorkers()
    results = list(share_out(workers, references(50), open_store(tmp_path), retries=0))
    assert sorted(result.scene.name for result in results) == sorted(scene.name for scene in references(50))
    assert workers.most == 3


def test_a_scene_whose_worker_dies_goes_to_another_until_its_retries_are_used_up(tmp_path):
    store = open_store(tmp_path)
    workers = StubWorkers(deaths={"s1": 2, "s3": 3})
    results = {result.scene.name: result for result in share_out(workers, references(5), store, retries=2)}
    assert {name: result.status for name, result in results.items()} == {
        "s0": "mapped",
        "s1": "mapped",
        "s2": "mapped",
        "s3": "failed",
        "s4": "mapped",
    }
    assert (results["s3"].reason, results["s3"].attempts) == ("its worker was ended by signal 9", 3)
    record = json.loads((tmp_path / "failed/s3.json").read_bytes())
    assert record == {
        "name": "s3",
        "href": "/data/s3.tif",
        "reason": "its worker was ended by signal 9",
        "attempts": 3,
    }
    log = [json.loads(line) for line in (tmp_path / "scenes/s1/s1.log").read_text().splitlines()]
    assert [line["event"] for line in log] == ["died", "died"]


def test_the_memory_of_a_run_does_not_grow_with_the_number_of_scenes(tmp_path):
    store = open_store(tmp_path)

    def peak(number: int) -> int:
        tracemalloc.start()
        count = sum(1 for _ in share_out(StubWorkers(), references(number), store, retries=3))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == number
        return peak

    peak(10)
    assert peak(10_000) < peak(100) + 20_000


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/4", "1/0", ""])
def test_a_wrong_shard_is_named(text):
    with pytest.raises(CCSegformerError, match=r"^shard "):
        parse_shard(text)


def test_a_shard_is_parsed():
    assert parse_shard("3/4") == (3, 4)
