"""A file for QGIS maps a scene in geodeep, which runs Deepness's models, as `predict_scene` does."""

import json
from pathlib import Path

import geodeep
import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import torch
from geodeep.utils import median_filter
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.data.procedural.geotiff import write_scenes
from ccsegformer.errors import EngineError, ExportError
from ccsegformer.export import export_for_qgis
from ccsegformer.labelling.loading import load_engine
from ccsegformer.labelling.scene import predict_scene
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from tests.cli.conftest import Run, run
from tests.export.test_export import CLASSES, PLAIN, TINY, tiny

assert run  # a fixture

WINDOW, OVERLAP = 128, 32
SIDE = 2 * WINDOW - OVERLAP  # two windows
RESOLUTION = 25  # of generated scenes, in centimetres per pixel
READ = (
    *("model_type", "class_names", "resolution", "tiles_size", "tiles_overlap"),
    *("seg_thresh", "seg_small_segment"),
)


def balanced(**values) -> CrissCrossSegformerForSemanticSegmentation:
    """Return a model that gives every class to a good part of a scene."""
    model = tiny(**values)
    with torch.inference_mode():
        logits = model(torch.randn(1, 3, WINDOW, WINDOW, generator=torch.Generator().manual_seed(2))).logits
        model.decode_head.classifier.bias -= logits.mean((0, 2, 3))
    return model


def own_labels(model: torch.nn.Module, scene: Path, folder: Path, classes: Classes) -> NDArray[np.uint8]:
    """Return the labels of `predict_scene`, after the median filter that geodeep always applies."""
    predict_scene(
        *(model, scene, folder / "map.tif"),
        classes=classes,
        window=WINDOW,
        overlap=OVERLAP,
        engine="torch",
    )
    with rasterio.open(folder / "map.tif") as source:
        return median_filter(source.read(1), 5)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(folder, training=1, validation=0, size=SIDE)
    return folder / "training" / "training_00000.tif"


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # geodeep's calls of rasterio
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")  # which geodeep tries first
@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ({**TINY, "attention": ("none", "criss_cross")}, CLASSES),
        (
            {**PLAIN, "band_means": [100.0, 120.0, 90.0], "band_stds": [40.0, 50.0, 45.0], "num_labels": 1},
            Classes(("road",)),
        ),
    ],
    ids=["imagenet", "own-statistics-one-label"],
)
def test_geodeep_maps_a_scene_as_predict_scene_does(values, classes, scene, tmp_path):
    model = balanced(**values)
    path = tmp_path / "model.onnx"
    assert export_for_qgis(model, classes, path, resolution=RESOLUTION, window=WINDOW) < 1e-5
    theirs = geodeep.run(str(scene), str(path), max_threads=1)
    ours = own_labels(model, scene, tmp_path, classes)
    assert np.bincount(ours.ravel(), minlength=len(classes)).min() > 0.02 * ours.size
    same = theirs == ours
    # geodeep cuts windows off in the middle of their overlap, `predict_scene` averages them there
    apart = np.r_[: WINDOW - OVERLAP - 2, WINDOW + 2 : SIDE]  # the filter reaches two pixels further
    assert (~same[np.ix_(apart, apart)]).sum() <= 4  # ties
    assert same.mean() > 0.98


def test_the_command_writes_what_deepness_reads(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    means, stds = [90.0, 100.0, 110.0, 130.0], [30.0, 40.0, 50.0, 60.0]
    model = tiny(**PLAIN, num_channels=4, band_means=means, band_stds=stds)
    model.save_pretrained(tmp_path / "model")
    write_classes(CLASSES, tmp_path / "model" / "classes.json")
    capsys.readouterr()  # transformers' progress bar
    path = tmp_path / "model.onnx"
    options = ("--for", "qgis", "--resolution", "12.5", "--window", "68", "--overlap", "10")
    done = run("export", tmp_path / "model", *options, "--output", path)
    assert (done.code, done.err) == (0, "") and len(done.out.splitlines()) == 1
    assert done.out.startswith(f"{path}: differs from PyTorch by at most ")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "model.onnx"]

    loaded = onnx.load(path)
    onnx.checker.check_model(loaded, full_check=True)
    # Deepness installs ONNX Runtime up to 1.17.0, which reads IR versions up to 9
    assert (loaded.ir_version, [each.version for each in loaded.opset_import]) == (8, [18])
    about = {each.key: json.loads(each.value) for each in loaded.metadata_props if each.key in READ}
    names = {"0": "ground", "1": "water", "2": "road"}
    assert about == dict(zip(READ, ("Segmentor", names, 12.5, 68, 15, 0, 0), strict=True))

    values = torch.randint(0, 256, (1, 4, 68, 68), generator=torch.Generator().manual_seed(3))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [session.get_inputs()[0].shape, session.get_outputs()[0].shape] == [[1, 4, 68, 68], [1, 3, 68, 68]]
    [found] = session.run(None, {"image": values.numpy().astype(np.float32) / 255})
    normalised = (values - torch.tensor(means)[:, None, None]) / torch.tensor(stds)[:, None, None]
    with torch.inference_mode():
        expected = interpolate(model(normalised).logits, size=(68, 68), mode="bilinear").softmax(1)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=0)

    with pytest.raises(EngineError, match="is a model for QGIS's Deepness"):
        load_engine(path)
    again = run("export", tmp_path / "model", *options, "--output", path)
    assert again.code == 1 and f"{path}: already exists" in again.err


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({"band_means": [900.0] * 3, "band_stds": [300.0] * 3}, {}, "means up to 900, but .* 8-bit images"),
        ({"band_means": [0.3] * 3, "band_stds": [0.1] * 3}, {}, "means up to 0.3, but .* 8-bit images"),
        ({}, {"window": 48}, "window 48, overlap 12: a window has at least 64"),
        ({}, {"window": 64, "overlap": 33}, "window 64, overlap 33: .* at most half"),
        ({}, {"resolution": 0}, "resolution 0: must be centimetres per pixel"),
        ({}, {"resolution": float("nan")}, "resolution nan"),
    ],
)
def test_what_the_plugins_cannot_run_is_refused(values, options, message, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=message):
        export_for_qgis(tiny(**PLAIN | values), CLASSES, path, **{"resolution": 10, **options})
    assert not path.exists()


def test_more_classes_than_a_byte_holds_are_refused(tmp_path):
    classes = Classes(tuple(map(str, range(256))), ignore_index=256)
    with pytest.raises(ExportError, match="256 classes; Deepness takes up to 255"):
        export_for_qgis(tiny(**PLAIN | {"num_labels": 256}), classes, tmp_path / "m.onnx", resolution=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--format: give onnx or pt2, or --for qgis"),
        (("--for", "qgis"), "--resolution: give the model's centimetres per pixel"),
        (("--for", "qgis", "--format", "pt2", "--resolution", "10"), "--format: QGIS takes ONNX"),
        (("--format", "onnx", "--window", "512"), "--window: is for QGIS: add --for qgis"),
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(options, message, run: Run):
    done = run("export", "model", *options, "--output", "model.onnx")
    assert done.code == 2 and message in done.err
