"""Models of one label: read, run, scored and exported as models of background and that label."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from ccsegformer.config.protocol import DEFAULT, EvaluationProtocol
from ccsegformer.data.labels import Classes
from ccsegformer.errors import DataError
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.export._export import LogitsModel, describe
from ccsegformer.labelling.engine import Engine, open_engine
from ccsegformer.labelling.labeller import predict_labels
from ccsegformer.labelling.loading import load_engine, load_model, open_segmenter

SIZES = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}


@pytest.fixture(scope="module")
def hub_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as transformers saves it, which labels about half of random pixels."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    config = SegformerConfig(num_labels=1, id2label={0: "road"}, label2id={"road": 0}, **SIZES)
    model = SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(100)
        logits = model(torch.randn(1, 3, 64, 96)).logits
        model.decode_head.classifier.bias.sub_(logits.median())
    model.save_pretrained(folder)
    return folder


def share_of_road(folder: Path, image: torch.Tensor) -> torch.Tensor:
    """Return transformers' sigmoid (H, W) of an 8-bit image (3, H, W)."""
    model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        logits = model(((image / 255 - mean) / std)[None]).logits
    return interpolate(logits, size=image.shape[1:], mode="bilinear").sigmoid()[0, 0]


def check_labels(engine: Engine, expected: torch.Tensor, image: torch.Tensor) -> None:
    found = predict_labels(engine, image, DEFAULT, name="image")
    sure = (expected - 0.5).abs() > 1e-4
    assert 0.2 < (expected > 0.5).float().mean() < 0.8
    assert torch.equal(found[sure].long(), (expected > 0.5)[sure].long())


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_labels_are_where_the_sigmoid_is_above_one_half(
    hub_model: Path, image: torch.Tensor, engine: str
) -> None:
    opened, classes = load_engine(hub_model, engine)  # type: ignore[arg-type]
    assert classes.names == ("background", "road") and opened.num_labels == 2
    check_labels(opened, share_of_road(hub_model, image), image)


def test_exported_files_give_both_logits_and_name_both_classes(hub_model: Path) -> None:
    model, classes = load_model(hub_model)
    pixels = torch.randn(1, 3, 64, 64)
    background, road = LogitsModel(model)(pixels)[0]
    assert not background.any()
    torch.testing.assert_close(road, model(pixels).logits[0, 0])
    assert json.loads(describe(model.config, classes)["class_names"]) == ["background", "road"]


@pytest.mark.parametrize("protocol", [{}, {"window": {"size": 48, "stride": 40}}, {"flip": True}])
def test_evaluate_scores_background_and_label(
    hub_model: Path, image: torch.Tensor, protocol: dict[str, object]
) -> None:
    chosen = EvaluationProtocol.model_validate(protocol)
    engine, _ = load_engine(hub_model, "torch")
    truth = predict_labels(engine, image, chosen, name="image").long()
    scores = evaluate(engine, [{"image": image, "mask": truth}], classes=["road"], protocol=chosen)
    assert scores.metrics.mean_iou == 1 and list(scores.metrics.per_class) == ["background", "road"]
    assert min(scores.confusion[0][0], scores.confusion[1][1]) > 0
    assert evaluate(engine, [{"image": image, "mask": truth}], protocol=chosen).metrics.mean_iou == 1


def test_any_network_of_one_logit_is_run() -> None:
    network = nn.Conv2d(3, 1, 1)
    engine, classes = open_segmenter(network, Classes(("road",)))
    pixels = torch.randn(1, 3, 32, 32)
    logits = engine(pixels)
    torch.testing.assert_close(logits[:, 1:], network(pixels))
    assert not logits[:, 0].any() and len(classes) == 2
    three, _ = open_segmenter(network, Classes(("a", "b", "c")))
    with pytest.raises(Exception, match="1 logit a pixel for 3 classes"):
        three(pixels)
    assert open_engine(network).num_labels is None


def test_classes_beside_a_model_may_name_one_or_both(hub_model: Path, tmp_path: Path) -> None:
    for path in hub_model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    listing = tmp_path / "classes.json"
    for names in (["street"], ["ground", "street"]):
        listing.write_text(json.dumps({"names": names, "ignore_index": 255}))
        assert load_model(tmp_path)[1].names[1] == "street"
    listing.write_text(json.dumps({"names": ["a", "b", "c"], "ignore_index": 255}))
    with pytest.raises(DataError, match="3 classes for a model of 2"):
        load_model(tmp_path)
