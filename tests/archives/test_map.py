"""Archives mapped by real workers: the same bytes from any of them, and nothing lost when they are killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pystac
import pytest
import rasterio

from ccsegformer.archives.run import map_scenes
from ccsegformer.archives.status import read_status
from ccsegformer.archives.store import open_store
from ccsegformer.errors import CheckpointError, OutputError
from tests.labelling.test_scene import tiny_model, write_scene

SCENES = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for index in range(SCENES):
        write_scene(folder / f"s{index}.tif", 70 + index, 90, seed=index)
    return folder


def mapped(model, scenes, output, **options):
    inputs = scenes if isinstance(scenes, list) else [scenes]
    options = {"engine": "torch", "window": 64, "workers": 1, **options}
    return {result.scene.name: result for result in map_scenes(model, inputs, output, **options)}


def contents(output: Path) -> dict[str, bytes]:
    """Everything in an archive but its logs, which hold times."""
    files = [path for path in output.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(model, scenes, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "maps"
    results = mapped(model, scenes, output, polygons=True)
    assert {result.status for result in results.values()} == {"mapped"}
    return output


def test_an_archive_has_maps_polygons_items_and_tables(whole, scenes):
    for index in range(SCENES):
        folder = whole / f"scenes/s{index}"
        names = {path.name for path in folder.iterdir()}
        assert names >= {f"s{index}{ending}" for ending in (".tif", ".parquet", ".json", ".log")}
        item = pystac.Item.from_file(folder / f"s{index}.json")
        with rasterio.open(folder / f"s{index}.tif") as label_map:
            assert item.properties["proj:shape"] == [label_map.height, label_map.width] == [70 + index, 90]
    assert {path.name for path in whole.iterdir()} >= {"scenes", "items.parquet", "collection.json"}
    assert len(read_status(open_store(whole)).mapped) == SCENES


def test_two_workers_write_the_same_bytes(model, scenes, whole, tmp_path):
    mapped(model, scenes, tmp_path / "maps", workers=2, polygons=True)
    assert contents(tmp_path / "maps") == contents(whole)


def test_shards_write_the_same_bytes_together(model, scenes, whole, tmp_path):
    output = tmp_path / "maps"
    shards = [mapped(model, scenes, output, shard=(index, 3), polygons=True) for index in range(3)]
    assert [len(shard) for shard in shards] == [2, 2, 2]
    assert contents(output) == contents(whole)


def test_a_second_run_keeps_what_is_done_and_maps_what_changed(model, scenes, tmp_path):
    inputs = tmp_path / "scenes"
    shutil.copytree(scenes, inputs)
    output = tmp_path / "maps"
    mapped(model, inputs, output)
    before = contents(output)
    assert {result.status for result in mapped(model, inputs, output).values()} == {"kept"}
    assert contents(output) == before
    write_scene(inputs / "s2.tif", 72, 90, seed=99)
    write_scene(inputs / "s9.tif", 72, 90, seed=9)
    again = mapped(model, inputs, output)
    assert {name for name, result in again.items() if result.status == "mapped"} == {"s2", "s9"}
    assert contents(output)["scenes/s2/s2.tif"] != before["scenes/s2/s2.tif"]
    other = mapped(model, inputs, output, confidence=True)
    assert {result.status for result in other.values()} == {"mapped"}


RUN = """
import sys
from ccsegformer.archives.run import map_scenes
list(map_scenes(sys.argv[1], [sys.argv[2]], sys.argv[3], engine="torch", window=64, workers=2, polygons=True))
"""


def test_runs_and_workers_that_are_killed_lose_nothing(model, scenes, whole, tmp_path):
    output = tmp_path / "maps"
    chance = random.Random(0)
    for _ in range(3):
        run = subprocess.Popen([sys.executable, "-c", RUN, str(model), str(scenes), str(output)])
        time.sleep(3 + 4 * chance.random())
        workers = children_of(run.pid)
        for worker in workers[:1]:
            os.kill(worker, signal.SIGKILL)
        time.sleep(chance.random())
        run.kill()
        run.wait()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline, "a worker outlives its run"
            time.sleep(0.05)
        for item in output.glob("scenes/*/*.json"):  # what is committed is whole
            assert (
                item.with_suffix(".tif").read_bytes()
                == (whole / item.relative_to(output)).with_suffix(".tif").read_bytes()
            )
    assert run_to_end(model, scenes, output) == 0
    assert contents(output) == contents(whole)


def run_to_end(model, scenes, output) -> int:
    return subprocess.run([sys.executable, "-c", RUN, str(model), str(scenes), str(output)]).returncode


def children_of(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in text.split()}
    return [child for child, command in commands.items() if b"spawn_main" in command]


def test_bad_scenes_are_listed_with_reasons_and_the_rest_is_mapped(model, scenes, tmp_path):
    inputs = tmp_path / "scenes"
    shutil.copytree(scenes, inputs)
    (inputs / "s0.tif").write_bytes((inputs / "s0.tif").read_bytes()[:3000])
    write_scene(inputs / "s1.tif", 70, 90, bands=5)
    output = tmp_path / "maps"
    results = mapped(model, inputs, output)
    failed = {name: result.reason for name, result in results.items() if result.status == "failed"}
    assert set(failed) == {"s0", "s1"}
    assert "s0.tif" in failed["s0"] and "cannot be read" in failed["s0"]
    assert failed["s1"].endswith("s1.tif: 5 bands for a model of 3")
    assert read_status(open_store(output)).failed == failed
    shutil.copy(scenes / "s0.tif", inputs / "s0.tif")
    assert mapped(model, inputs, output)["s0"].status == "mapped"
    assert set(read_status(open_store(output)).failed) == {"s1"}
    assert not (output / "failed/s0.json").exists()


def test_a_model_that_cannot_be_opened_ends_the_run_in_one_line(scenes, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        mapped(tmp_path / "nowhere", scenes, tmp_path / "maps")


def test_an_output_that_cannot_be_written_ends_the_run(model, scenes, tmp_path):
    (tmp_path / "maps").write_text("a file")
    with pytest.raises(OutputError, match="maps"):
        mapped(model, scenes, tmp_path / "maps")


def test_the_same_bytes_reach_an_object_store(model, scenes, whole, tmp_path, bucket):
    output = f"s3://{bucket}/some/maps"
    results = mapped(model, scenes, output, polygons=True, scratch=tmp_path / "scratch")
    assert {result.status for result in results.values()} == {"mapped"}
    store = open_store(output)
    found = {key: store.get(key) for key in store.keys("") if not key.endswith(".log")}
    local = contents(whole)
    assert set(found) == set(local)
    for key in (key for key in found if key.endswith((".tif", ".parquet")) and key.startswith("scenes/")):
        assert found[key] == local[key]
    assert not list((tmp_path / "scratch").rglob("*.tif"))
    assert {r.status for r in mapped(model, scenes, output, polygons=True).values()} == {"kept"}


def test_the_command_maps_and_tells_the_status(model, scenes, tmp_path):
    command = [sys.executable, "-m", "ccsegformer", "map", str(model), str(scenes), "--output"]
    output = tmp_path / "maps"
    status = subprocess.run([*command, str(output), "--status"], capture_output=True, text=True)
    assert status.stdout == f"{SCENES} scenes: 0 mapped, 0 unfinished, 0 failed, {SCENES} not begun\n"
    options = ["--engine", "torch", "--window", "64", "--workers", "1"]
    run = subprocess.run([*command, str(output), *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"{SCENES} mapped, 0 kept, 0 failed" in run.stderr
    status = subprocess.run([*command, str(output), "--status"], capture_output=True, text=True)
    assert status.stdout == f"{SCENES} scenes: {SCENES} mapped, 0 unfinished, 0 failed, 0 not begun\n"
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\0")
    command[5] = str(broken)
    run = subprocess.run([*command, str(output), *options], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "ccsegformer: error: 1 of the scenes failed: broken"
    assert json.loads((output / "failed/broken.json").read_bytes())["attempts"] == 1
