"""What would go wrong without a word: other people's models, orders of bands and classes, and resumption."""

import resource
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torch import nn
from transformers import SegformerImageProcessor

from ccsegformer.data.dataset import check_labels
from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError, EngineError, OutOfMemoryError
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.export import export
from ccsegformer.labelling.engine import model_digest, open_engine
from ccsegformer.labelling.inputs import predict_inputs
from ccsegformer.labelling.loading import load_engine, load_model
from ccsegformer.labelling.preprocess import given_preprocessing
from ccsegformer.labelling.scene import predict_scene
from ccsegformer.raster import mapping
from tests.labelling.test_scene import read, tiny_model, write_scene

CLASSES = Classes(("ground", "water", "road"))


class Tilted(nn.Module):
    """Scores classes by colour, with a plain attribute that decides between two of them."""

    def __init__(self, tilt: float, bands: int = 3) -> None:
        super().__init__()
        self.tilt, self.bands = tilt, bands

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.stack([pixels[:, 0], pixels[:, self.bands - 1] + self.tilt, pixels[:, 1]], dim=1)


def test_the_image_processor_of_a_segformer_is_followed(tmp_path: Path) -> None:
    tiny_model(attention="efficient").save_pretrained(tmp_path)
    assert load_engine(tmp_path)[0].preprocessing.statistics is None
    SegformerImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(tmp_path)
    preprocessing = load_engine(tmp_path)[0].preprocessing
    statistics = preprocessing.statistics
    assert statistics is not None and preprocessing.only_8_bit
    export(*load_model(tmp_path), tmp_path / "model.pt2", "pt2")  # a file says the same
    assert load_engine(tmp_path / "model.pt2")[0].preprocessing.statistics == statistics
    assert statistics.means == pytest.approx((127.5,) * 3) and statistics.stds == pytest.approx((63.75,) * 3)


def test_a_run_of_another_model_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = write_scene(tmp_path / "scene.tif", 300, 200)
    options = {"classes": CLASSES, "window": 64, "overlap": 32}
    with monkeypatch.context() as patch:
        patch.setattr(mapping, "write_cog", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_scene(Tilted(9.0), scene, tmp_path / "map.tif", **options)
    predict_scene(Tilted(-9.0), scene, tmp_path / "map.tif", **options)
    predict_scene(Tilted(-9.0), scene, tmp_path / "fresh.tif", **options)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "fresh.tif"))
    assert model_digest(Tilted(1.0)) == model_digest(Tilted(1.0)) != model_digest(Tilted(2.0))
    hooked = Tilted(1.0)
    hooked.register_forward_hook(lambda *_: None)
    assert open_engine(hooked).digest is None


def test_quantised_models_are_run() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(2), nn.Linear(64, 64), nn.Unflatten(2, (8, 8)))
    with warnings.catch_warnings(action="ignore"):  # deprecated, and still used
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    engine = open_engine(quantised)
    assert engine(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)
    assert engine.digest is not None and engine.digest()


@pytest.mark.parametrize(("count", "ignored", "label"), [(300, 65535, 50), (300, 65535, 255), (2, 65535, 1)])
def test_labels_of_8_bits_do_not_wrap(count: int, ignored: int, label: int) -> None:
    classes = Classes(tuple(map(str, range(count))), ignore_index=ignored)
    check_labels(torch.full((2, 2), label, dtype=torch.uint8), classes, "mask.png")
    with pytest.raises(DataError, match="label 255"):
        two = Classes(("a", "b"), ignore_index=65535)
        check_labels(torch.full((2, 2), 255, dtype=torch.uint8), two, "mask.png")


@pytest.mark.parametrize("options", [{"bands": (3, 2, 1)}, {"confidence": True}])
def test_options_of_scenes_are_not_ignored_for_photographs(tmp_path: Path, options: dict) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "photograph.png")
    engine = open_engine(tiny_model())
    with pytest.raises(DataError, match=r"photograph\.png: is not georeferenced, and \w+ is for scenes"):
        list(predict_inputs(engine, CLASSES, [str(tmp_path)], tmp_path / "out", scene_options=options))


@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_a_scene_that_cannot_be_read_is_not_taken_for_a_photograph(tmp_path: Path, dtype: str) -> None:
    scene = str(write_scene(tmp_path / "scene.tif", dtype=dtype))
    with pytest.raises(DataError, match=f"values of {dtype}"):
        list(predict_inputs(open_engine(tiny_model()), CLASSES, [scene], tmp_path / "out"))


def test_a_scene_given_twice_is_one_line(tmp_path: Path) -> None:
    scene = str(write_scene(tmp_path / "scene.tif"))
    with pytest.raises(DataError, match="rename one"):
        list(predict_inputs(open_engine(tiny_model()), CLASSES, [scene, scene], tmp_path / "out"))


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    model = tiny_model(id2label=dict(enumerate(("water", "ground", "road"))))
    images = [(torch.zeros(3, 40, 40, dtype=torch.uint8), torch.zeros(40, 40, dtype=torch.uint8))]
    with pytest.raises(DataError, match="class 0 is 'water' for the model but 'ground' for the data set"):
        evaluate(model, images, classes=CLASSES)
    model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match="the same names in another order"):
        load_engine(tmp_path, classes=CLASSES)
    assert evaluate(tiny_model(), images, classes=CLASSES).images == 1  # names that say nothing


def test_only_the_bands_that_are_used_are_read(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(5, 70, 80)).astype("float32")
    data[3] = np.nan
    scene = write_scene(tmp_path / "scene.tif", data=data, dtype="float32")
    preprocessing = given_preprocessing([0.0, 0.1, 0.2], [1.0, 1.1, 1.2])
    options = {"classes": CLASSES, "bands": (5, 2, 1), "preprocessing": preprocessing}
    done = predict_scene(Tilted(0), scene, tmp_path / "map.tif", **options)
    assert done.notes == () and read(tmp_path / "map.tif").max() < 3


def test_a_model_of_other_bands_than_the_mean_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="mean and std of 2 bands for a model of 3"):
        open_engine(tiny_model()).with_preprocessing(given_preprocessing([1, 2], [1, 2]))
    identity = given_preprocessing([0, 0, 0], [1, 1, 1])  # the network normalises by itself
    identity.check(3, "uint8", "a.tif")


def test_a_network_that_fails_is_one_line(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 64, 64)
    with pytest.raises(EngineError, match=r"scene\.tif: the model fails on \(1, 3, 64, 64\)"):
        predict_scene(nn.Linear(5, 3), scene, tmp_path / "map.tif", classes=CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_a_run_goes_on_with_the_smaller_windows_that_it_had_come_to(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", height=900, width=300)
    engine, calls, stop_at = open_engine(tiny_model()), 0, 6

    def run(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        if pixels.shape[-2] > 256:
            raise torch.OutOfMemoryError("CUDA out of memory")
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        return engine.run(pixels)

    small = replace(engine, run=run)
    with pytest.raises(KeyboardInterrupt):
        predict_scene(small, scene, tmp_path / "map.tif", classes=CLASSES, overlap=200)
    stop_at = -1
    done = predict_scene(small, scene, tmp_path / "map.tif", classes=CLASSES, overlap=200)
    assert (done.window, done.overlap) == (256, 64)
    first = calls
    calls = 0
    predict_scene(small, scene, tmp_path / "other.tif", classes=CLASSES, overlap=200)
    assert first - 6 < calls
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "other.tif").read_bytes()
    with pytest.raises(OutOfMemoryError):
        predict_scene(small, scene, tmp_path / "none.tif", classes=CLASSES, window=512)


def test_a_map_is_not_closed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, writing, closed = write_scene(tmp_path / "scene.tif", 200, 200), threading.Event(), []
    original = rasterio.io.DatasetWriter.write

    def slow(*arguments: object, **options: object) -> None:
        writing.set()
        time.sleep(0.2)
        closed.append(arguments[0].closed)  # type: ignore[attr-defined]
        original(*arguments, **options)

    def fails(pixels: torch.Tensor) -> torch.Tensor:
        if writing.is_set():
            raise ValueError("on purpose")
        return pixels

    grown = mapping.create_map
    monkeypatch.setattr(
        mapping,
        "create_map",
        lambda *a: (grown(*a), monkeypatch.setattr(rasterio.io.DatasetWriter, "write", slow)),
    )
    with pytest.raises(EngineError, match="on purpose"):
        predict_scene(fails, scene, tmp_path / "map.tif", classes=CLASSES, window=64, overlap=32)
    assert closed and not any(closed)


def test_wide_scenes_do_not_run_out_of_open_files(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 100, 5760)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (120, before[1]))
    try:
        predict_scene(Tilted(0), scene, tmp_path / "map.tif", classes=CLASSES, window=64, overlap=32)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert read(tmp_path / "map.tif").shape == (100, 5760)


def test_polygons_that_fail_leave_the_map_to_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, calls = write_scene(tmp_path / "scene.tif"), []

    class Counted(Tilted):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return super().forward(pixels)

    options = {"classes": CLASSES, "polygons": tmp_path / "map.gpkg"}
    with monkeypatch.context() as patch:
        failing = lambda *_, **__: (_ for _ in ()).throw(DataError("polygons: on purpose"))  # noqa: E731
        patch.setattr("ccsegformer.raster.polygons.write_polygons", failing)
        with pytest.raises(DataError, match="on purpose"):
            predict_scene(Counted(0), scene, tmp_path / "map.tif", **options)
    seen = len(calls)
    predict_scene(Counted(0), scene, tmp_path / "map.tif", **options)
    assert len(calls) == seen and (tmp_path / "map.gpkg").exists()
