import json
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from torch import nn
from torchvision.tv_tensors import Image, Mask

from ccsegformer.config.protocol import EvaluationProtocol, ResizeSection
from ccsegformer.data.dataset import Sample
from ccsegformer.data.folder import ImageMaskFolder
from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import DataError, OutputError
from ccsegformer.evaluation.confusion import compute_metrics
from ccsegformer.evaluation.evaluate import evaluate, write_confusion, write_metrics
from ccsegformer.labelling.labeller import predict_labels
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

CLASSES = Classes(("dark", "light", "never"))


class Threshold(nn.Module):
    """A model that labels pixels above the mean colour as light, at a quarter of the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.frozen = nn.Dropout().eval()
        self.config = SimpleNamespace(num_labels=3)
        self.trained_on = 0

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.trained_on += self.training
        light = (
            nn.functional.avg_pool2d(pixel_values.mean(dim=1, keepdim=True), 4, ceil_mode=True) * self.gain
        )
        return SimpleNamespace(logits=torch.cat([-light, light, torch.full_like(light, -1e4)], dim=1))


class Halves:
    """Images of many sizes, dark on the left and light on the right; tracks which are still in memory."""

    classes = CLASSES

    def __init__(self, count: int, mask: int | None = None) -> None:
        self.names = tuple(f"image {n}" for n in range(count))
        self.mask = mask
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most_alive = 0

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        if index >= len(self):
            raise IndexError
        height, width = 33 + index, 64 + 8 * index
        labels = torch.zeros(height, width, dtype=torch.uint8)
        labels[:, width // 2 :] = 1
        image = Image(labels.expand(3, -1, -1) * 200)
        if index % 2:  # a quarter of every second image has wrong labels
            labels[:, : width // 4] = 1
        labels[0] = 255
        if self.mask is not None:
            labels.fill_(self.mask)
        self.alive.add(image)
        self.most_alive = max(self.most_alive, len(self.alive))
        return {"image": image, "mask": Mask(labels), "name": self.names[index]}


def test_scores_and_protocol() -> None:
    evaluation = evaluate(Threshold(), Halves(2), device="cpu")
    # The halves meet at a multiple of four, so only resizing blurs the border, by a column or two.
    assert evaluation.images == 2
    right, wrong = 32 * 64 + 33 * 54, 33 * 18
    assert evaluation.metrics.pixel_accuracy == pytest.approx(right / (right + wrong), abs=0.03)
    assert evaluation.metrics.per_class["never"]["iou"] is None
    assert evaluation.protocol["ignore_index"] == 255
    assert evaluation.protocol["precision"] == "fp32"


def test_matrices_of_the_images_add_up() -> None:
    seen: dict[str, torch.Tensor] = {}
    dataset = Halves(5)
    evaluation = evaluate(Threshold(), dataset, on_image=seen.__setitem__)
    assert tuple(seen) == dataset.names
    total = torch.stack(list(seen.values())).sum(dim=0)
    assert compute_metrics(total, CLASSES.names) == evaluation.metrics
    pixels = [(dataset[n]["mask"] != 255).sum() for n in range(5)]
    assert [matrix.sum() for matrix in seen.values()] == pixels


def test_a_model_is_scored_in_evaluation_mode_and_gets_its_modes_back() -> None:
    model = Threshold()
    before = torch.get_rng_state()
    evaluate(model, Halves(2))
    predict_labels(model, Halves(1)[0]["image"])
    assert model.trained_on == 0
    assert model.training and not model.frozen.training
    assert torch.equal(before, torch.get_rng_state()), "drew from the global generator"
    with pytest.raises(DataError):
        evaluate(model, Halves(1, mask=255))
    assert model.training


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    dataset = Halves(20)
    evaluate(Threshold(), dataset)
    assert dataset.most_alive <= 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_worker_processes_change_nothing() -> None:
    assert evaluate(Threshold(), Halves(5), workers=2) == evaluate(Threshold(), Halves(5))


@pytest.mark.parametrize("attention", ["efficient", "criss_cross", "none"])
@pytest.mark.parametrize("size", [(1, 1), (70, 1), (31, 45)])
def test_images_of_any_size_are_labelled(attention: str, size: tuple[int, int]) -> None:
    config = CrissCrossSegformerConfig(
        num_labels=4,
        attention=attention,
        hidden_sizes=[8, 16, 40, 32],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=16,
    )
    model = CrissCrossSegformerForSemanticSegmentation(config)
    labels = predict_labels(model, torch.zeros(3, *size, dtype=torch.uint8))
    assert labels.shape == size
    assert labels.dtype == torch.uint8 and labels.max() < 4


def test_images_that_are_too_large_are_refused_by_name() -> None:
    large = torch.zeros(3, 1, 1, dtype=torch.uint8).expand(3, 6000, 6001)
    with pytest.raises(
        DataError, match=r"harbour\.tif: 6001x6000 is 36\.0 megapixels, and .* may have 36; cut it"
    ):
        predict_labels(Threshold(), large, name="harbour.tif")


def test_what_cannot_be_scored_is_one_line() -> None:
    with pytest.raises(DataError, match="no labelled pixel to score"):
        evaluate(Threshold(), Halves(2, mask=255))
    model = Threshold()
    model.config.num_labels = 150
    with pytest.raises(DataError, match="the model has 150 classes, but the data set has 3"):
        evaluate(model, Halves(2))


def test_the_protocol_decides_what_the_model_sees_and_is_stored_whole() -> None:
    seen = []
    model = Threshold()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    protocol = EvaluationProtocol(resize=ResizeSection(short_side=66, multiple_of=32), flip=True)
    evaluation = evaluate(model, Halves(1), protocol=protocol)
    assert seen == [(96, 128)] * 2
    assert evaluation.protocol["resize"] == {"short_side": 66, "long_side": None, "multiple_of": 32}
    assert evaluation.protocol.items() >= protocol.model_dump(mode="json").items()
    assert (evaluation.protocol["name"], evaluation.protocol["device"]) == ("own", "cpu")
    assert evaluation.metrics.pixel_accuracy > 0.95


def test_each_image_has_a_score_of_its_own() -> None:
    dataset = Halves(4)
    matrices: dict[str, torch.Tensor] = {}
    evaluation = evaluate(Threshold(), dataset, on_image=matrices.__setitem__)
    assert list(evaluation.image_iou) == list(dataset.names)
    for name, matrix in matrices.items():
        assert evaluation.image_iou[name] == compute_metrics(matrix, CLASSES.names).mean_iou
    assert evaluation.mean_image_iou == pytest.approx(np.mean(list(evaluation.image_iou.values())))
    assert evaluation.mean_image_iou != pytest.approx(evaluation.metrics.mean_iou, abs=1e-4)
    assert evaluation.confusion == torch.stack(list(matrices.values())).sum(dim=0).tolist()


def test_an_image_without_labels_is_left_out_of_the_mean() -> None:
    class OneBlank(Halves):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            if index == 0:
                sample["mask"].fill_(255)
            return sample

    evaluation = evaluate(Threshold(), OneBlank(2))
    first, second = evaluation.image_iou.values()
    assert first is None
    assert evaluation.mean_image_iou == second


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_runs_in_the_protocol_s_precision(precision: Any, dtype: torch.dtype) -> None:
    model = nn.Module()
    model.layer = nn.Conv2d(3, 2, 1)
    model.config = SimpleNamespace(num_labels=2)
    found = []

    def forward(pixel_values: torch.Tensor) -> SimpleNamespace:
        found.append((logits := model.layer(pixel_values)).dtype)
        return SimpleNamespace(logits=logits)

    model.forward = forward
    predict_labels(model, torch.zeros(3, 40, 40, dtype=torch.uint8), EvaluationProtocol(precision=precision))
    assert found == [dtype]
    assert model.layer.weight.dtype == torch.float32


def test_an_image_that_the_protocol_makes_too_large_is_refused() -> None:
    protocol = EvaluationProtocol(resize=ResizeSection(short_side=7000), scales=(0.5, 1.0))
    with pytest.raises(DataError, match=r"a: 40x32 resized to 8750x7000 is 61\.2 megapixels"):
        predict_labels(Threshold(), torch.zeros(3, 32, 40, dtype=torch.uint8), protocol, name="a")


def test_the_confusion_matrix_as_a_file(tmp_path: Path) -> None:
    evaluation = evaluate(Threshold(), Halves(2))
    write_confusion(evaluation, tmp_path / "confusion.csv")
    header, *rows = (line.split(",") for line in (tmp_path / "confusion.csv").read_text().splitlines())
    assert header == ["true \\ predicted", *CLASSES.names]
    assert [row[0] for row in rows] == list(CLASSES.names)
    assert [[int(cell) for cell in row[1:]] for row in rows] == evaluation.confusion


def test_metrics_json(tmp_path: Path) -> None:
    write_metrics(evaluate(Threshold(), Halves(2)), tmp_path / "scores" / "metrics.json")
    written: dict[str, Any] = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert set(written) == {
        "mean_iou",
        "mean_iou_interval",
        "mean_accuracy",
        "pixel_accuracy",
        "devkit_mean_iou",
        "mean_image_iou",
        "per_class",
        "images",
        "protocol",
        "image_iou",
        "ignored_pixels",
    }
    assert written["images"] == 2
    assert list(written["per_class"]) == list(CLASSES.names)
    assert written["mean_iou_interval"] is None
    with pytest.raises(OutputError, match="metrics"):
        write_metrics(evaluate(Threshold(), Halves(1)), tmp_path / "scores" / "metrics.json" / "deeper")


CHANNELS = """
from types import SimpleNamespace
import torch

class Channels(torch.nn.Module):
    config = SimpleNamespace(num_labels=2)

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, pixel_values):
        return SimpleNamespace(logits=pixel_values[:, :2] * self.gain)
"""

ONE_OF_TWO = """
import json, sys
import torch.distributed as dist
from ccsegformer.data.folder import ImageMaskFolder
from ccsegformer.evaluation.evaluate import evaluate

torch.set_num_threads(1)
root, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=2)
names = []
evaluation = evaluate(Channels(), ImageMaskFolder(root), on_image=lambda name, matrix: names.append(name))
print(json.dumps([names, evaluation.to_dict(), evaluation.confusion]))
dist.destroy_process_group()
"""


def test_two_processes_share_the_images_and_agree(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for kind, shape in (("images", (40, 36, 3)), ("annotations", (40, 36))):
        (tmp_path / kind / "training").mkdir(parents=True)
        for name in "abcdefghij":
            pixels = generator.integers(0, 2 if kind == "annotations" else 256, shape, dtype=np.uint8)
            PillowImage.fromarray(pixels).save(tmp_path / kind / "training" / f"{name}.png")
    write_classes(Classes(("x", "y")), tmp_path / "classes.json")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHANNELS + ONE_OF_TWO, str(tmp_path), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    (first, *together), (second, *other) = map(json.loads, outputs)
    assert (first, second) == ([*"acegi"], [*"bdfhj"])
    scope: dict[str, Any] = {}
    exec(CHANNELS, scope)
    alone = evaluate(scope["Channels"](), ImageMaskFolder(tmp_path))
    assert together == other == [alone.to_dict(), alone.confusion]
    assert list(together[0]["image_iou"]) == [*"abcdefghij"]
    assert together[0]["mean_iou_interval"]


@pytest.mark.parametrize(
    ("label", "name", "other"), [(0, "dark", "marks 'light', save it as 1"), (1, "light", "'dark'")]
)
def test_a_truth_of_one_class_is_said_with_its_name(
    label: int, name: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class OneClass(Halves):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            sample["mask"][sample["mask"] != label] = 255
            return sample

    evaluation = evaluate(Threshold(), OneClass(2))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"OneClass object, 2 samples: predicting '{name}' everywhere gives mean IoU 1 here"
    )
    assert f"hold one class only, '{name}' (label {label}); " in line and other in line
    write_metrics(evaluation, tmp_path / "metrics.json")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["warning"] == line
    assert written["ignored_pixels"] == sum(int((mask != label).sum()) for mask in masks_of(OneClass(2)))
    plain = evaluate(Threshold(), Halves(2))
    assert capsys.readouterr().err == plain.warning == ""
    assert "warning" not in plain.to_dict()


def test_a_truth_without_labels_names_the_data_and_the_remedy() -> None:
    with pytest.raises(DataError) as caught:
        evaluate(Threshold(), Halves(2, mask=255))
    assert str(caught.value) == (
        "Halves object, 2 samples: no labelled pixel to score: its masks hold no labelled pixel, only "
        "ignore_index 255 or no data; if 255 marks a class, save it as a label from 0 to 2"
    )


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["Dark", "light", "never"], ""),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ""),
        (
            ["road", "light", "sky"],
            "2 of 3 classes have other names .* class 0: 'road' and 'dark'; .* number",
        ),
    ],
)
def test_other_class_names_of_the_same_number_are_said(
    names: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Threshold()
    model.config.id2label = dict(enumerate(names))
    evaluate(model, Halves(2))
    printed = capsys.readouterr().err
    assert re.search(f"^Halves object, 2 samples: {says}", printed) if says else printed == ""


def test_the_interval_is_of_the_data_sets_mean_iou() -> None:
    dataset = Halves(10)
    seen: dict[str, torch.Tensor] = {}
    evaluation = evaluate(Threshold(), dataset, on_image=seen.__setitem__)
    matrices = torch.stack([seen[name] for name in dataset.names]).numpy()
    drawn = np.random.default_rng(1).integers(0, 10, (1000, 10))  # other draws than the package's
    scores = [compute_metrics(matrices[index].sum(axis=0), CLASSES.names).mean_iou for index in drawn]
    assert evaluation.mean_iou_interval == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.02)
    low, high = evaluation.mean_iou_interval or (1, 0)
    assert low < evaluation.metrics.mean_iou < high
    assert evaluate(Threshold(), Halves(9)).mean_iou_interval is None


def masks_of(dataset: Halves) -> list[torch.Tensor]:
    return [dataset[index]["mask"] for index in range(len(dataset))]
