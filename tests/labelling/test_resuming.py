"""Runs that are broken off, killed, out of disk or cut from the network, go on and write the same bytes."""

import json
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler

import numpy as np
import pytest
import rasterio
import torch

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import DataError, OutputError
from ccsegformer.labelling.engine import open_engine
from ccsegformer.labelling.loading import load_model
from ccsegformer.labelling.scene import predict_scene
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.raster import _journal, mapping, source_files
from tests.served import Handler, served

TINY = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1]}
TINY |= {"decoder_hidden_size": 8, "num_labels": 3}
STEPS = ["opened_map", "write_progress", "write_cog", "_publish"]
OPTIONS = {"window": 64, "overlap": 32, "confidence": True}
RUN = """
import sys, time, torch
torch.set_num_threads(1)
from ccsegformer import load_model, predict_scene
from ccsegformer.raster import _journal
count = _journal.write_progress
def write_progress(folder, progress):
    if progress.rows > 5:
        time.sleep(600)  # it is killed on the way here
    count(folder, progress)
_journal.write_progress = write_progress
model, classes = load_model(sys.argv[1], device="cpu")
predict_scene(model, *sys.argv[2:4], classes=classes, window=64, overlap=32, confidence=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained model, in a way, and a scene with a hole."""
    folder = tmp_path_factory.mktemp("given")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CrissCrossSegformerForSemanticSegmentation(CrissCrossSegformerConfig(**TINY))
        torch.nn.init.normal_(model.decode_head.classifier.weight)
    model.save_pretrained(folder / "model")
    write_classes(Classes(("ground", "water", "road")), folder / "model" / "classes.json")
    data = np.random.default_rng(0).integers(1, 255, (3, 300, 200), dtype=np.uint8)
    data[:, 100:200, 60:150] = 0
    profile = {"driver": "GTiff", "height": 300, "width": 200, "count": 3, "dtype": "uint8", "nodata": 0}
    profile |= {"crs": "EPSG:32632", "transform": rasterio.Affine(1, 0, 4e5, 0, -1, 5e6)}
    with rasterio.open(folder / "scene.tif", "w", **profile) as target:
        target.write(data)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    return load_model(folder / "model", device="cpu")


@pytest.fixture(scope="module")
def whole(folder, trained):
    """The map of a run that was not interrupted."""
    model, classes = trained
    predict_scene(model, folder / "scene.tif", folder / "whole.tif", classes=classes, **OPTIONS)
    return (folder / "whole.tif").read_bytes()


def rows_done(output):
    try:
        return json.loads((_journal.folder_for(output) / "progress.json").read_text())["rows"]
    except (OSError, ValueError):
        return 0


def test_a_killed_run_goes_on_and_writes_the_same_bytes(folder, trained, whole, tmp_path):
    model, classes = trained
    output = tmp_path / "map.tif"
    command = [sys.executable, "-c", RUN, folder / "model", folder / "scene.tif", output]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while rows_done(output) < 5 and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -9, process.stderr.read().decode()
    assert not output.exists()
    assert rows_done(output) == 5
    predict_scene(model, folder / "scene.tif", output, classes=classes, **OPTIONS)
    assert output.read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == {"map.tif", "map.tif.aux.xml"}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("count", [1, 4])
def test_a_run_stopped_between_any_two_writes_goes_on(
    folder, trained, whole, tmp_path, monkeypatch, step, count
):
    model, classes = trained
    output = tmp_path / "map.tif"
    calls = 0
    home = _journal if step == "write_progress" else mapping
    original = getattr(home, step)

    def stop(*arguments, **more):
        nonlocal calls
        calls += 1
        if calls == count or step in STEPS[2:]:
            raise KeyboardInterrupt
        return original(*arguments, **more)

    options = {"classes": classes, "polygons": tmp_path / "map.gpkg", **OPTIONS}
    with monkeypatch.context() as patch:
        patch.setattr(home, step, stop)
        with pytest.raises(KeyboardInterrupt):
            predict_scene(model, folder / "scene.tif", output, **options)
    assert not output.exists()
    done, seen = rows_done(output), 0
    assert done == (count - 1 if step in STEPS[:2] else 9)
    engine = open_engine(model)

    def run(pixels):
        nonlocal seen
        seen += 1
        return engine.run(pixels)

    predict_scene(replace(engine, run=run), folder / "scene.tif", output, **options)
    assert seen <= 6 * (9 - max(0, done - 1)) and (done < 9 or not seen)
    assert output.read_bytes() == whole and (tmp_path / "map.gpkg").exists()


def test_another_job_begins_anew(folder, trained, tmp_path, monkeypatch):
    model, classes = trained
    output = tmp_path / "map.tif"
    with monkeypatch.context() as patch:
        patch.setattr(
            mapping, "write_cog", lambda *_: (_ for _ in ()).throw(OutputError("map.tif: no space"))
        )
        with pytest.raises(OutputError, match="no space; what is done is kept, run again to go on"):
            predict_scene(model, folder / "scene.tif", output, classes=classes, window=128)
    assert rows_done(output) > 0
    predict_scene(model, folder / "scene.tif", output, classes=classes, window=96)
    predict_scene(model, folder / "scene.tif", tmp_path / "fresh.tif", classes=classes, window=96)
    assert output.read_bytes() == (tmp_path / "fresh.tif").read_bytes()


def test_two_runs_of_one_output_are_refused(folder, trained, tmp_path):
    model, classes = trained
    output = tmp_path / "map.tif"
    with (
        _journal.locked(_journal.folder_for(output)),
        pytest.raises(OutputError, match="another process is at work"),
    ):
        predict_scene(model, folder / "scene.tif", output, classes=classes)


def test_too_little_disk_is_noticed_before_the_work(folder, trained, tmp_path, monkeypatch):
    model, classes = trained
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match="MB are needed"):
        predict_scene(model, folder / "scene.tif", tmp_path / "map.tif", classes=classes)
    assert not list(tmp_path.iterdir())


@contextmanager
def full_disk(size):
    """No file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_at_the_beginning(folder, trained, tmp_path):
    model, classes = trained
    with full_disk(100_000), pytest.raises(OutputError, match=r"growing\.tif: cannot be written") as caught:
        predict_scene(model, folder / "scene.tif", tmp_path / "map.tif", classes=classes)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 1000, 20_000, 30_000])
def test_a_disk_that_is_full_at_the_end(folder, trained, whole, tmp_path, monkeypatch, size):
    model, classes = trained
    assert len(whole) > 35_000
    with monkeypatch.context() as patch:
        original = mapping.write_cog

        def write_cog(*arguments):
            with full_disk(size):
                original(*arguments)

        patch.setattr(mapping, "write_cog", write_cog)
        with pytest.raises(OutputError, match=r"map\.tif: cannot be written: .*run again to go on") as caught:
            predict_scene(model, folder / "scene.tif", tmp_path / "map.tif", classes=classes, **OPTIONS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "map.tif").exists()
    predict_scene(model, folder / "scene.tif", tmp_path / "map.tif", classes=classes, **OPTIONS)
    assert (tmp_path / "map.tif").read_bytes() == whole


class PixelsHandler(Handler):
    """Answers whatever opens a scene, and fails for its pixels alone."""

    do_HEAD = SimpleHTTPRequestHandler.do_HEAD

    def do_GET(self):
        if self.headers["Range"].startswith("bytes=0-"):
            self.send_part(200)
        else:
            super().do_GET()


@pytest.fixture
def server(folder):
    with served(folder, PixelsHandler) as server:
        yield server


def test_a_remote_read_that_fails_and_comes_back(server, trained, whole, tmp_path, monkeypatch):
    monkeypatch.setitem(source_files.GDAL_OPTIONS, "GDAL_HTTP_RETRY_DELAY", 0.001)
    model, classes = trained
    address = f"/vsicurl/{server.address}/scene.tif"
    server.faults["*"] = [503, 503, 200]
    predict_scene(model, address, tmp_path / "map.tif", classes=classes, **OPTIONS)
    assert server.failed == 2
    assert (tmp_path / "map.tif").read_bytes() == whole


def test_a_remote_scene_that_stays_away_can_be_continued(server, trained, whole, tmp_path, monkeypatch):
    monkeypatch.setitem(source_files.GDAL_OPTIONS, "GDAL_HTTP_RETRY_DELAY", 0.001)
    model, classes = trained
    address = f"/vsicurl/{server.address}/scene.tif"
    server.faults["*"] = [503]
    with pytest.raises(DataError, match=r"scene\.tif: rows \d+-\d+, columns \d+-\d+ cannot be read"):
        predict_scene(model, address, tmp_path / "map.tif", classes=classes, **OPTIONS)
    server.faults.clear()
    predict_scene(model, address, tmp_path / "map.tif", classes=classes, **OPTIONS)
    assert (tmp_path / "map.tif").read_bytes() == whole
