"""An exported file labels as the model does, in ONNX Runtime and in OpenVINO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from ccsegformer.data.labels import Classes
from ccsegformer.errors import EngineError
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.export import export
from ccsegformer.labelling.engine import open_engine
from ccsegformer.labelling.loading import load_engine
from tests.labelling.test_engine import Two, difference, make, pixels

CLASSES = Classes(tuple("abcde"), palette=tuple((level, 0, 0) for level in range(5)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(make(), CLASSES, path, "onnx")
    return path


def test_logits_classes_and_what_computes(file: Path) -> None:
    engine, classes = load_engine(file)
    assert classes == CLASSES
    assert (engine.name, engine.precision, engine.num_labels) == ("onnxruntime", "fp32", 5)
    assert engine.library.startswith("onnxruntime 1.")
    for shape in ((1, 3, 64, 96), (2, 3, 130, 77)):
        assert difference(engine(pixels(*shape)), open_engine(make(), "torch")(pixels(*shape))) < 1e-5


def test_the_command_line_labels_and_scores(file: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    values = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(values).save(image)
    done = run("predict", file, image, "--output", tmp_path / "labels")
    assert (done.code, done.err) == (0, f"engine: {load_engine(file)[0].describe()}\n")
    make().save_pretrained(tmp_path / "model")
    assert run("predict", tmp_path / "model", image, "--output", tmp_path / "others").code == 0
    found, expected = (np.array(Image.open(tmp_path / name / "image.png")) for name in ("labels", "others"))
    assert found.shape == (70, 90) and (found == expected).mean() > 0.999
    again = run("predict", file, image, "--output", tmp_path / "by_openvino", "--engine", "openvino")
    assert again.code == 0 and again.err.startswith("engine: openvino ")
    found = np.array(Image.open(tmp_path / "by_openvino" / "image.png"))
    assert (found == expected).mean() > 0.999
    wrong = run("predict", file, image, "--output", tmp_path / "labels", "--engine", "torch")
    assert wrong.code == 1 and "model.onnx: runs in onnxruntime or openvino, not in torch" in wrong.err


def test_scores_are_those_of_the_model(file: Path) -> None:
    by_file, by_model = (evaluate(each, Two()) for each in (load_engine(file)[0], make()))
    assert by_file.protocol["engine"].startswith("onnxruntime ")
    assert np.abs(np.array(by_file.confusion) - np.array(by_model.confusion)).sum() <= 4  # ties


def test_small_images_are_refused(file: Path) -> None:
    with pytest.raises(EngineError, match="takes images of 64 pixels a side and more, not 64 x 40"):
        load_engine(file)[0](torch.zeros(1, 3, 64, 40))


def test_files_that_are_no_exports(file: Path, tmp_path: Path) -> None:
    for content, message in ((b"no model", "not a model that onnxruntime can run"), (None, "cannot be read")):
        path = tmp_path / "other.onnx"
        path.unlink(missing_ok=True)
        if content:
            path.write_bytes(content)
        with pytest.raises(EngineError, match=f"other.onnx: {message}"):
            load_engine(path)
    model = onnx.load(file)
    config = next(entry for entry in model.metadata_props if entry.key == "config")
    config.value = "{"
    onnx.save(model, path)
    with pytest.raises(EngineError, match="its metadata cannot be read"):
        load_engine(path)
    model.metadata_props.remove(config)
    onnx.save(model, path)
    with pytest.raises(EngineError, match="'config' is missing from its metadata; export it again"):
        load_engine(path)


def test_a_model_is_not_run_by_it() -> None:
    with pytest.raises(EngineError, match="onnxruntime runs ONNX files"):
        open_engine(make(), "onnxruntime")
