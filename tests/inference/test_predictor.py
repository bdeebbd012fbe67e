import json

import numpy as np
import pytest
import torch
from PIL import Image

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import CheckpointError, DataError, OutputError
from ccsegformer.inference import load_model, predict_files
from ccsegformer.inference.predictor import encode_labels
from ccsegformer.models import (
    CrissCrossSegformerConfig,
    CrissCrossSegformerForSemanticSegmentation,
    CrissCrossSegformerModel,
)

CLASSES = Classes(("ground", "water", "road"), ((10, 20, 30), (40, 50, 60), (70, 80, 90)))
TINY = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1]}
TINY |= {"decoder_hidden_size": 8, "num_labels": 3}


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CrissCrossSegformerConfig(**TINY)
        return CrissCrossSegformerForSemanticSegmentation(config).eval()


def write_image(path, size=(20, 13), seed=0):
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def read(path):
    with Image.open(path) as image:
        image.load()
    return image


def test_writes_labels_and_overlay_of_the_images_size(model, tmp_path):
    image = write_image(tmp_path / "a.png")
    [(labels_path, overlay_path)] = predict_files(model, CLASSES, [image], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "a_overlay.png"}
    labels = read(labels_path)
    assert labels.mode == "P"
    assert labels.size == (20, 13)
    assert labels.getpalette()[:9] == [level for color in CLASSES.palette for level in color]
    ids = np.asarray(labels)
    assert ids.max() < 3
    overlay = np.asarray(read(overlay_path)).astype(int)
    halves = np.asarray(read(image)).astype(int) // 2 + np.array(CLASSES.palette)[ids] // 2
    np.testing.assert_array_equal(overlay, halves)


def test_a_folder_stands_for_its_images(model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    write_image(folder / "b.png")
    write_image(folder / "a.jpg")
    (folder / "notes.txt").write_text("not an image")
    written = predict_files(model, CLASSES, [folder], tmp_path / "out")
    assert [labels.name for labels, _ in written] == ["a.png", "b.png"]


def test_an_image_one_pixel_wide(model, tmp_path):
    image = write_image(tmp_path / "thin.png", size=(1, 40))
    [(labels, _)] = predict_files(model, CLASSES, [image], tmp_path / "out")
    assert read(labels).size == (1, 40)


@pytest.mark.parametrize(("first", "second"), [("x/a.png", "y/a.jpg"), ("x/a.png", "x/a_overlay.png")])
def test_images_whose_outputs_share_a_name_are_refused(model, tmp_path, first, second):
    for name in (first, second):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_image(tmp_path / name)
    with pytest.raises(DataError, match="rename one"):
        predict_files(model, CLASSES, [tmp_path / first, tmp_path / second], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_would_replace_an_image_is_refused(model, tmp_path):
    image = write_image(tmp_path / "a.png")
    before = image.read_bytes()
    with pytest.raises(OutputError, match="would replace an image"):
        predict_files(model, CLASSES, [image], tmp_path)
    assert image.read_bytes() == before


def test_missing_images_are_noticed_before_anything_is_written(model, tmp_path):
    image = write_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="no such image"):
        predict_files(model, CLASSES, [image, tmp_path / "b.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_refused(model, tmp_path):
    with pytest.raises(DataError, match="no images in this folder"):
        predict_files(model, CLASSES, [tmp_path], tmp_path / "out")


def test_a_damaged_image_is_named_and_leaves_the_others_whole(model, tmp_path):
    good, bad = write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png")
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(DataError, match=r"b\.png") as caught:
        predict_files(model, CLASSES, [good, bad], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "a_overlay.png"}


def test_an_output_that_cannot_be_written(model, tmp_path):
    image = write_image(tmp_path / "a.png")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="out"):
        predict_files(model, CLASSES, [image], tmp_path / "out")


def test_more_than_256_classes_are_16_bit_grey(tmp_path):
    classes = Classes(tuple(map(str, range(300))), ignore_index=65535)
    labels = np.array([[0, 255, 299]])
    (tmp_path / "labels.png").write_bytes(encode_labels(labels, classes))
    np.testing.assert_array_equal(np.asarray(read(tmp_path / "labels.png")), labels)


def test_load_model_takes_the_classes_beside_the_weights(model, tmp_path):
    model.save_pretrained(tmp_path)
    write_classes(CLASSES, tmp_path / "classes.json")
    loaded, classes = load_model(tmp_path, device="cpu")
    assert classes == CLASSES
    assert not loaded.training


def test_load_model_without_a_listing_takes_the_configurations_labels(model, tmp_path):
    model.save_pretrained(tmp_path)
    _, classes = load_model(tmp_path, device="cpu")
    assert classes == Classes(("LABEL_0", "LABEL_1", "LABEL_2"))


def test_load_model_refuses_classes_of_another_number(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["a", "b"], "ignore_index": 255}))
    with pytest.raises(DataError, match="2 classes for a model of 3"):
        load_model(tmp_path)


def test_load_model_refuses_an_encoder_alone(tmp_path, capsys):
    CrissCrossSegformerModel(CrissCrossSegformerConfig(**TINY)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not a trained segmentation model"):
        load_model(tmp_path)
