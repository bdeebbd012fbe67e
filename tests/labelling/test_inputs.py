import json
import warnings

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from ccsegformer.data.labels import Classes, write_classes
from ccsegformer.errors import CCSegformerError, CheckpointError, DataError, OutputError
from ccsegformer.evaluation.evaluate import evaluate
from ccsegformer.labelling import inputs as predictor
from ccsegformer.labelling.inputs import encode_labels, predict_files, predict_inputs
from ccsegformer.labelling.loading import load_engine, load_model
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


def write_scene(path, size=(20, 13), seed=0):
    pixels = np.random.default_rng(seed).integers(1, 256, size=(3, size[1], size[0]), dtype=np.uint8)
    profile = {"driver": "GTiff", "width": size[0], "height": size[1], "count": 3, "dtype": "uint8"}
    profile |= {"crs": "EPSG:4326", "transform": rasterio.Affine(1e-5, 0, 7, 0, -1e-5, 50)}
    with rasterio.open(path, "w", **profile) as target:
        target.write(pixels)
    return path


def test_large_photographs_go_through_in_windows(model, tmp_path, monkeypatch):
    image = write_image(tmp_path / "a.png", size=(150, 100))
    predict_files(model, CLASSES, [image], tmp_path / "whole")
    monkeypatch.setattr(predictor, "MAX_MEGAPIXELS", 0.01)
    predict_files(model, CLASSES, [image], tmp_path / "large", memory="2GB")
    predict_files(model, CLASSES, [image], tmp_path / "cut", window=64)
    whole, large, cut = (np.asarray(read(tmp_path / way / "a.png")) for way in ("whole", "large", "cut"))
    np.testing.assert_array_equal(large, whole)  # one window of the default size
    assert cut.shape == whole.shape and (cut != whole).any()
    assert read(tmp_path / "cut" / "a_overlay.png").size == (150, 100)


def test_windows_of_a_photograph_are_those_of_a_scene(model, tmp_path):
    scene = write_scene(tmp_path / "a.tif", (200, 150))
    with rasterio.open(scene) as source:
        Image.fromarray(source.read().transpose(1, 2, 0)).save(tmp_path / "b.png")
    options = {"window": 96, "overlap": 32}
    inputs = [str(scene), str(tmp_path / "b.png")]
    written = [paths for paths, _ in predict_inputs(model, CLASSES, inputs, tmp_path / "out", **options)]
    assert [paths[0].name for paths in written] == ["a.tif", "b.png"]
    with rasterio.open(written[0][0]) as found:
        np.testing.assert_array_equal(found.read(1), np.asarray(read(written[1][0])))


def test_scenes_and_photographs_of_a_folder(model, tmp_path):
    (tmp_path / "in").mkdir()
    write_scene(tmp_path / "in" / "a.tif")
    write_scene(tmp_path / "in" / "a_mask.tif")  # of a training set, it is no scene
    write_image(tmp_path / "in" / "b.tif")
    written = list(predict_inputs(model, CLASSES, [str(tmp_path / "in")], tmp_path / "out"))
    assert [[path.name for path in paths] for paths, _ in written] == [["a.tif"], ["b.png", "b_overlay.png"]]
    assert [notes for _, notes in written] == [(), ()]


def test_a_map_by_name_may_be_of_any_raster(model, tmp_path):
    image = write_image(tmp_path / "b.tif")
    [(paths, notes)] = predict_inputs(model, CLASSES, [str(image)], tmp_path / "map.tif")
    assert paths == (tmp_path / "map.tif",) and paths[0].exists()
    assert len(notes) == 1 and "no coordinate reference system" in notes[0]


def test_outputs_that_would_replace_scenes_or_one_another(model, tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    scenes = [str(write_scene(tmp_path / name / "a.tif")) for name in ("x", "y")]
    with pytest.raises(DataError, match="rename one"):
        list(predict_inputs(model, CLASSES, scenes, tmp_path / "out"))
    with pytest.raises(OutputError, match="would replace"):
        list(predict_inputs(model, CLASSES, scenes[:1], tmp_path / "x"))
    with pytest.raises(OutputError, match="name a folder"):
        list(predict_inputs(model, CLASSES, scenes, tmp_path / "map.tif"))
    assert not (tmp_path / "out").exists() and not (tmp_path / "map.tif").exists()


def test_bad_files_leave_the_rest_of_a_folder_done(model, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "c.png"):
        write_image(tmp_path / "in" / name)
    for name in ("d.tif", "f.tif"):
        write_scene(tmp_path / "in" / name)
    (tmp_path / "in" / "b.jpg").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:100])
    damaged = (tmp_path / "in" / "f.tif").read_bytes()[:400]
    (tmp_path / "in" / "e.tif").write_bytes(damaged)
    failed = []
    done = predict_inputs(model, CLASSES, [str(tmp_path / "in")], tmp_path / "out", failed=failed)
    assert [paths[0].name for paths, _ in done] == ["d.tif", "f.tif", "a.png", "c.png"]
    assert sorted(str(error).split(":")[0].rpartition("/")[2] for error in failed) == ["b.jpg", "e.tif"]
    assert not any("\n" in str(error) for error in failed)
    with pytest.raises(DataError, match=r"e\.tif|b\.jpg"):
        list(predict_inputs(model, CLASSES, [str(tmp_path / "in")], tmp_path / "out"))


def test_what_is_no_photograph_is_not_taken_for_one(model, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.pdf", "b.h5", "c.eps", "d.ico", "e.mpg"):
        (tmp_path / "in" / name).write_bytes(b"not a photograph")
    with pytest.raises(DataError, match=r"no images in this folder; it holds 1 .*pdf"):
        predict_files(model, CLASSES, [tmp_path / "in"], tmp_path / "out")
    write_image(tmp_path / "in" / "z.png")
    [(labels, _)] = predict_files(model, CLASSES, [tmp_path / "in"], tmp_path / "out")
    assert labels.name == "z.png"


@pytest.mark.parametrize("suffix", [".ppm", ".pnm", ".pgm"])
def test_netpbm_files_are_photographs(model, tmp_path, suffix):
    image = tmp_path / f"a{suffix}"
    Image.new("L" if suffix == ".pgm" else "RGB", (20, 13)).save(image)
    [(paths, _)] = predict_inputs(model, CLASSES, [str(image)], tmp_path / "out")
    assert [path.name for path in paths] == ["a.png", "a_overlay.png"]


@pytest.mark.parametrize("terms", [(0, 0, 1, 0, 0, 1), (1, 1, 0, 1, 1, 0), (float("nan"), 0, 0, 0, 1, 0)])
@pytest.mark.parametrize("crs", [None, "EPSG:32632"])
def test_transforms_without_area_are_none(model, tmp_path, terms, crs):
    profile = {"driver": "GTiff", "width": 20, "height": 13, "count": 3, "dtype": "uint8", "crs": crs}
    with rasterio.open(tmp_path / "a.tif", "w", transform=rasterio.Affine(*terms), **profile) as target:
        target.write(np.random.default_rng(0).integers(1, 256, (3, 13, 20), dtype=np.uint8))
    [(paths, _)] = predict_inputs(model, CLASSES, [str(tmp_path / "a.tif")], tmp_path / "out")
    assert paths[0].name == "a.png"
    options = {"scene_options": {"polygons": tmp_path / "a.gpkg"}}
    list(predict_inputs(model, CLASSES, [str(tmp_path / "a.tif")], tmp_path / "map.tif", **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "map.tif") as found:
            assert found.transform.is_identity


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["N/A", "street", "N/A"], ("N/A", "street", "N/A (2)")),
        (["", " ", "road"], ("LABEL_0", "LABEL_1", "road")),
        ([7, 11, "11"], ("7", "11", "11 (2)")),
        (["a (2)", "a", "a"], ("a (2)", "a", "a (2) (2)")),
    ],
)
def test_unusual_names_of_a_models_classes(model, tmp_path, given, expected):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = dict(enumerate(given))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path, device="cpu")[1] == Classes(expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({1: "a", 2: "b", 3: "c"}, "id2label .* names 1-3, but its 3 classes are 0-2"),
        ({0: "a"}, r"classifier.bias has shape \(3,\) in the weights and \(1,\) in the model"),
    ],
)
def test_labels_that_are_not_counted_from_0_are_one_line(model, tmp_path, labels, message):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = labels
    config.pop("label2id", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CCSegformerError, match=message) as caught:
        load_model(tmp_path, device="cpu")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_given_classes_rescue_a_model_whose_labels_run_from_1(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {1: "a", 2: "b", 3: "c"}
    config.pop("label2id", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CCSegformerError, match=r"names 1-3, .* with --classes FILE"):
        load_engine(tmp_path)
    given = Classes(("a", "b", "c"))
    opened, classes = load_engine(tmp_path, classes=given)
    assert classes is given and opened.num_labels == 3
    with pytest.raises(CCSegformerError, match="2 classes for a model of 3"):
        load_engine(tmp_path, classes=Classes(("a", "b")))
    samples = [(np.zeros((32, 32, 3), np.uint8), np.tile(np.arange(2, dtype=np.uint8), (32, 16)))]
    assert evaluate(opened, samples, classes=given).images == 1
    with pytest.raises(CCSegformerError, match="has no class names"):
        evaluate(opened, samples)
