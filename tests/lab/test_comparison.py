"""A comparison trains, scores, reports, continues where it stopped, and overwrites only on request."""

import json

import numpy as np
import pytest
from PIL import Image

from ccsegformer.config.protocol import EvaluationProtocol, ResizeSection, load_protocol
from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import CCSegformerError, CheckpointError, OutputError
from ccsegformer.lab import comparison
from ccsegformer.lab.comparison import compare
from ccsegformer.lab.cost import Cost
from ccsegformer.training.recipe import Recipe

KEYS = {"created", "version", "command", "machine", "recipe", "data", "protocol", "verdict", "models"}
MODEL_KEYS = {
    *("attention", "recurrence", "projection", "lepe", "mean_iou", "mean_iou_std", "mean_iou_interval"),
    *("mean_accuracy", "pixel_accuracy", "devkit_mean_iou", "parameters", "gflops", "peak_memory_mib"),
    *("images_per_second", "train_seconds", "per_class", "image_miou", "runs"),
}


@pytest.fixture(autouse=True)
def no_fresh_process(monkeypatch):
    """Skip the measurement of costs, which takes seconds and has its own test."""
    monkeypatch.setattr(
        comparison,
        "measure_cost",
        lambda *_: Cost(3_700_000, 3.2, 48.0, 11.0, 64, 64, device="cpu", threads=2, engine="openvino 1"),
    )


@pytest.fixture
def data(tmp_path):
    """Four training images and three held-out images, one of which is ignored entirely."""
    root = tmp_path / "data"
    generator = np.random.default_rng(0)
    for split, count in (("training", 4), ("validation", 3)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((64, 64), dtype=np.uint8)
            mask[:, generator.integers(10, 50) :] = 1
            image = (60 + 120 * mask[..., None] + generator.integers(20, size=(64, 64, 3))).astype(np.uint8)
            if (split, index) == ("validation", 2):
                mask[:] = 255
            Image.fromarray(image).save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{index}.png")
    write_classes(Classes(("dark", "light", "never <seen>")), root / "classes.json")
    return root


def recipe(steps: int = 2, **model: str) -> Recipe:
    training = {"steps": steps, "batch_size": 2, "workers": 0}
    return Recipe.model_validate({"model": model, "training": training, "optimizer": {"learning_rate": 1e-3}})


def test_compare_writes_results_and_report_and_trains_only_once(data, tmp_path):
    output = tmp_path / "out"
    results = compare(recipe(), data, output, attentions=["criss_cross"], progress=False)

    assert json.loads((output / "results.json").read_text()) == results
    assert results.keys() == KEYS
    assert list(results["models"]) == ["criss_cross", "none"]
    for attention, model in results["models"].items():
        assert model.keys() == MODEL_KEYS
        assert 0 <= model["mean_iou"] <= 1
        assert model["per_class"].keys() == {"dark", "light", "never <seen>"}
        assert len(model["image_miou"]) == 3
        assert model["image_miou"][2] is None
        [run] = model["runs"]
        assert run["mean_iou"] == model["mean_iou"]
        assert run["loss"][-1][0] == 2
        assert (output / f"{attention}-seed0" / "model.safetensors").is_file()
        metrics = json.loads((output / f"{attention}-seed0" / "metrics.json").read_text())
        assert metrics["mean_iou"] == model["mean_iou"]
    assert results["data"]["images"] == ["0", "1", "2"]
    page = (output / "report.html").read_text()
    assert "never &lt;seen&gt;" in page
    assert page.count("<img") == 2 * 4  # two images with labels; each with truth and two predictions

    # A second call trains nothing and gives the same results.
    weights = list(output.glob("*/model.safetensors"))
    written = [path.stat().st_mtime_ns for path in weights]
    again = compare(recipe(), data, output, attentions=["criss_cross"], progress=False)
    assert again["models"] == results["models"]
    assert [path.stat().st_mtime_ns for path in weights] == written

    # A different recipe is refused, and the folder stays unchanged.
    with pytest.raises(OutputError, match=r"differs in training\.steps"):
        compare(recipe(steps=3), data, output, attentions=["criss_cross"])
    assert json.loads((output / "results.json").read_text()) == again


def test_overwrite_removes_the_earlier_comparison(tmp_path, data):
    output = tmp_path / "out"
    for folder in ("efficient-seed0", "none-seed7"):
        (output / folder).mkdir(parents=True)
        (output / folder / "model.safetensors").write_text("weights")
    (output / "results.json").write_text("{}")
    (output / "recipe.yaml").write_text("training: {steps: 9}")
    (output / "notes.txt").write_text("mine")

    untrainable = recipe(pretrained=str(tmp_path / "missing"))
    with pytest.raises(CheckpointError, match="missing"):
        compare(untrainable, data, output, overwrite=True, progress=False)
    assert {path.name for path in output.iterdir()} == {"recipe.yaml", "notes.txt"}


@pytest.mark.parametrize("name", ["config.json", "notes.txt"])
def test_a_folder_with_other_content_is_refused(data, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(OutputError, match="choose another folder"):
        compare(recipe(), data, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("attentions", [(), ("none",), ("criss_cross", "axial")])
def test_wrong_attentions_are_refused(data, tmp_path, attentions):
    with pytest.raises(CCSegformerError, match="attentions must be"):
        compare(recipe(), data, tmp_path / "out", attentions=attentions)


def test_a_comparison_with_a_custom_protocol(data, tmp_path):
    output = tmp_path / "out"
    protocol = EvaluationProtocol(resize=ResizeSection(short_side=96), flip=True)
    results = compare(recipe(), data, output, attentions=["criss_cross"], protocol=protocol, progress=False)
    assert results["protocol"].items() >= protocol.model_dump(mode="json").items()
    assert load_protocol(output / "protocol.yaml") == protocol
    assert f"--protocol {output / 'protocol.yaml'}" in results["command"]
    page = (output / "report.html").read_text()
    assert f"{protocol.name}: {protocol.summary()}" in page
    assert page.count(f"--protocol {output / 'protocol.yaml'}") == 3  # the comparison and each model


def test_a_protocol_with_another_score_is_refused(data, tmp_path):
    with pytest.raises(CCSegformerError, match="score mean_iou"):
        compare(recipe(), data, tmp_path / "out", protocol=load_protocol("report"))
    assert not (tmp_path / "out").exists()


def test_zero_seeds_are_refused(data, tmp_path):
    with pytest.raises(CCSegformerError, match="seeds must be"):
        compare(recipe(), data, tmp_path / "out", seeds=0)
