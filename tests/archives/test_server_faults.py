"""Scenes whose server fails, is slow or breaks off: tried again as fits, then listed; others are mapped."""

import pyarrow.parquet as pq
import pystac
import pytest

from ccsegformer.archives.job import ArchiveJob
from ccsegformer.archives.listing import list_scenes
from ccsegformer.archives.tables import write_tables
from ccsegformer.archives.worker import open_mapper
from ccsegformer.raster import remote, source_files
from tests.archives.test_map import model, scenes  # noqa: F401
from tests.served import served

BAD = "s1.tif?tile=404"
"""The scene whose server fails; the number in its address is none of an answer."""


@pytest.fixture
def server(scenes, monkeypatch):  # noqa: F811
    monkeypatch.setitem(source_files.GDAL_OPTIONS, "GDAL_HTTP_MAX_RETRY", 0)
    monkeypatch.setitem(source_files.REMOTE_OPTIONS, "GDAL_HTTP_LOW_SPEED_TIME", 1)
    monkeypatch.setitem(source_files.REMOTE_OPTIONS, "GDAL_HTTP_LOW_SPEED_LIMIT", 10**6)
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)
    with served(scenes) as server:
        yield server


def map_here(model, addresses, output, retries=1):  # noqa: F811
    """Map scenes in this process, one after another, without a pause before retries."""
    job = ArchiveJob(str(model), str(output), engine="torch", window=64, retries=retries, pause=0)
    mapper = open_mapper(job)
    results = {scene.name: mapper.map(scene) for scene in list_scenes(addresses)}
    write_tables(mapper.store)
    return results


@pytest.mark.parametrize(
    ("faults", "attempts", "reason"),
    [
        ([503, 200], 2, None),
        (["half", 200], 2, None),
        (["stall", 200], 2, None),
        (["silence", 200], 2, None),
        ([503], 2, "503"),
        (["half"], 2, "cannot be read"),
        (["stall"], 2, "cannot be read"),
        (["silence"], 2, "the server does not answer: timed out"),
        ([404], 1, "404"),
        ([403], 1, "403"),
    ],
)
def test_a_scene_is_tried_again_as_fits(server, model, tmp_path, faults, attempts, reason):  # noqa: F811
    server.faults["/s1.tif"] = list(faults)
    results = map_here(model, [f"{server.address}/{name}" for name in ("s0.tif", BAD, "s2.tif")], tmp_path)
    statuses = {name: result.status for name, result in results.items()}
    assert statuses == {"s0": "mapped", "s1": "failed" if reason else "mapped", "s2": "mapped"}
    assert results["s1"].attempts == attempts
    rows = pq.read_table(tmp_path / "failed.parquet").to_pylist()
    assert [(row["name"], row["href"], row["attempts"]) for row in rows] == [
        ("s1", f"{server.address}/{BAD}", attempts)
    ] * bool(reason)
    assert all(reason in row["reason"] and "\n" not in row["reason"] for row in rows)


def test_another_signature_is_the_same_scene(server, scenes, model, tmp_path):  # noqa: F811
    for signature, status in (("one", "mapped"), ("other", "kept")):
        results = map_here(model, [f"{server.address}/s0.tif?signature={signature}"], tmp_path)
        assert results["s0"].status == status
    item = pystac.Item.from_file(tmp_path / "scenes/s0/s0.json")
    assert item.datetime.timestamp() == int((scenes / "s0.tif").stat().st_mtime)
    assert item.properties["ccsegformer:datetime_from"] == "modification"
