"""The page of an evaluation shows where a model fails."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from ccsegformer.config.protocol import EvaluationProtocol, load_protocol
from ccsegformer.data.labels import Classes
from ccsegformer.evaluation.confusion import compute_metrics
from ccsegformer.evaluation.evaluate import Evaluation, evaluate
from ccsegformer.evaluation.shortfalls import rank_shortfalls
from ccsegformer.report.failures import (
    MATRIX_CLASSES,
    Failure,
    confusion_rows,
    render_failures,
    worst_images,
)
from ccsegformer.report.scores import print_scores

NAMES = ("road", "grass", "tree", "car", "never")


def evaluation_of(matrix: np.ndarray, names=NAMES, protocol: EvaluationProtocol | None = None) -> Evaluation:
    protocol = protocol or EvaluationProtocol()
    record = {
        "name": protocol.name,
        "summary": protocol.summary(),
        **protocol.model_dump(mode="json"),
        "engine": "openvino 2026.4.1",
        "device": "cpu",
    }
    image_iou = {"first": 0.5, "second": None, "third": 0.25}
    return Evaluation(compute_metrics(matrix, names), 3, record, image_iou, matrix.tolist())


@pytest.fixture
def evaluation() -> Evaluation:
    matrix = np.zeros((5, 5), dtype=int)
    matrix[0, 0], matrix[0, 1], matrix[2, 0], matrix[2, 2], matrix[3, 3] = 60, 10, 30, 1, 500
    return evaluation_of(matrix)


def failure(name: str = "third", classes: int = 5) -> Failure:
    truth = np.zeros((40, 60), dtype=np.uint8)
    truth[:, 30:], truth[:4] = 2, 255
    prediction = np.zeros((40, 60), dtype=np.uint8)
    prediction[0] = classes - 1  # these rows are not labelled and must not count
    return Failure(name, 0.25, np.zeros((40, 60, 3), dtype=np.uint8), truth, prediction)


def page(evaluation: Evaluation, names=NAMES, failures=None) -> str:
    failures = [failure()] if failures is None else failures
    given = {
        "model": "runs/mine",
        "data": "DIR",
        "split": "validation",
        "command": ["ccsegformer", "evaluate"],
    }
    return render_failures(evaluation, Classes(tuple(names)), iter(failures), **given)


def test_the_page_has_scores_classes_matrix_and_images(evaluation):
    text = page(evaluation)
    for score in (evaluation.metrics.mean_iou, evaluation.mean_image_iou, evaluation.metrics.devkit_mean_iou):
        assert f">{score:.3f}<" in text
    assert re.findall(r"</span>(\w+)</th>", text) == [
        of.name for of in rank_shortfalls(evaluation.confusion, NAMES)
    ]
    assert re.search(r"\b1 class that occurs in neither", text)
    assert 'title="tree labelled as road: 96.8%, 30 pixels"' in text
    assert "not in the truth" in text  # grass is only predicted
    assert "50% of its pixels are tree labelled as road" in text
    assert f"default: {EvaluationProtocol().summary()}" in text
    assert text.count("<img") == 3
    assert "0.375" in text


def test_the_page_loads_no_resources_and_escapes_names(evaluation):
    hostile = "<script>alert('x')</script>"
    text = page(evaluation, [hostile, *NAMES[1:]], [failure('"><b>')])
    assert "<script" not in text and "<b>" not in text
    assert "&lt;script&gt;" in text
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(addresses) == 3
    assert all(address.startswith("data:image/") for address in addresses)
    assert not re.search(r"url\(|@import", text)


def test_a_truth_of_one_class_is_said_on_the_page(evaluation):
    assert 'role="note"' not in page(evaluation)
    text = page(replace(evaluation, warning="predicting <road> everywhere gives mean IoU 1"))
    assert "predicting &lt;road&gt; everywhere gives mean IoU 1" in text
    assert text.index('role="note"') < text.index('id="classes"')


def test_the_protocol_s_score_is_the_heading(evaluation):
    assert f"<h1>{evaluation.metrics.mean_iou:.3f} mIoU</h1>" in page(evaluation)
    matrix = np.array(evaluation.confusion)
    assert "<h1>0.375 image mIoU</h1>" in page(evaluation_of(matrix, protocol=load_protocol("report")))


def test_a_perfect_model():
    text = page(evaluation_of(np.diag([3, 4, 5, 6, 0])), failures=[])
    assert "Every labelled pixel is correct." in text
    assert "<img" not in text


def test_few_classes_are_shown_one_by_one(evaluation):
    losses = rank_shortfalls(evaluation.confusion, NAMES)
    rows = dict(confusion_rows(evaluation.confusion, losses))
    assert list(rows) == ["road", "grass", "tree", "car"]
    assert rows["grass"] == []
    assert [cell.share for cell in rows["road"]] == pytest.approx([6 / 7, 1 / 7, 0, 0])
    assert [cell.kind for cell in rows["road"]] == ["right", "wrong", "wrong", "wrong"]


def test_many_classes_are_merged():
    names = [f"class {label}" for label in range(150)]
    matrix = np.random.default_rng(0).integers(0, 5, (150, 150)) + np.diag(np.arange(150) * 40)
    losses = rank_shortfalls(matrix.tolist(), names)
    rows = confusion_rows(matrix.tolist(), losses)
    shown = [name for name, _ in rows]
    assert len(shown) == MATRIX_CLASSES and shown[-1] == "all others"
    assert {losses[0].name, losses[0].confused_with, losses[1].name} <= set(shown)
    for _, cells in rows:
        assert len(cells) == MATRIX_CLASSES
        assert sum(cell.share for cell in cells) == pytest.approx(1)
    assert rows[-1][1][-1].kind == "others"
    counted = sum(int(re.search(r"([\d,]+) pixels", c.title)[1].replace(",", "")) for _, r in rows for c in r)
    assert counted == matrix.sum()
    text = page(evaluation_of(matrix, names), names, [failure(classes=150)])
    assert "The other 130 classes" in text
    assert len(re.findall(r"<li><span class=\"swatch\"", text)) == 3  # only the classes in the pictures


class Scenes:
    """Four images; image n is wrong on n fifths of its pixels, and the second has no labels."""

    classes = Classes(("a", "b"))
    names = ("n0", "n1", "n2", "n3")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        mask = torch.zeros(40, 50, dtype=torch.uint8)
        mask[:, : 10 * index] = 1
        if index == 1:
            mask[:] = 255
        image = torch.zeros(3, 40, 50, dtype=torch.uint8)
        return {"image": image, "mask": mask, "name": self.names[index]}


class AlwaysA(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.config = type("Config", (), {"num_labels": 2})

    def forward(self, pixel_values):
        logits = torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, *pixel_values.shape[2:])
        return type("Output", (), {"logits": logits})


def test_the_worst_images_come_first_and_unlabelled_ones_are_left_out():
    model, dataset = AlwaysA(), Scenes()
    protocol = EvaluationProtocol(flip=True)
    evaluation = evaluate(model, dataset, protocol=protocol)
    found = list(worst_images(model, dataset, evaluation, protocol))
    assert [of.name for of in found] == ["n3", "n2", "n0"]
    assert [of.score for of in found] == [evaluation.image_iou[of.name] for of in found]
    assert found[0].image.shape == (40, 50, 3)
    assert (found[0].prediction == 0).all() and found[0].truth[0, 0] == 1
    assert len(list(worst_images(model, dataset, evaluation, protocol, count=1))) == 1


def test_the_terminal_sorts_by_shortfall_and_shows_both_means(evaluation):
    def printed(evaluation):
        screen = io.StringIO()
        print_scores(evaluation, Console(file=screen, width=120, color_system=None))
        return screen.getvalue()

    text = printed(evaluation)
    losses = rank_shortfalls(evaluation.confusion, NAMES)
    assert re.findall(r"^│ (\w+)", text, flags=re.MULTILINE) == [of.name for of in losses]
    assert "1 classes occur" not in text and "1 class occurs in neither" in text
    assert text.index("mean IoU 0.") < text.index("mean of per-image mIoU 0.375")
    turned = printed(evaluation_of(np.array(evaluation.confusion), protocol=load_protocol("report")))
    assert turned.index("mean of per-image mIoU 0.375") < turned.index("mean IoU 0.")
    assert "protocol report: " in turned
