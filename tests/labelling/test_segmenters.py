"""Any segmenter maps a scene: modules of other libraries, functions, and files from elsewhere."""

import warnings
from pathlib import Path

import numpy as np
import openvino
import pytest
import rasterio
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from transformers import (
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    MobileViTImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

from ccsegformer.data.labels import Classes
from ccsegformer.data.pixels import normalize
from ccsegformer.errors import CheckpointError, DataError, EngineError
from ccsegformer.labelling.engine import open_engine
from ccsegformer.labelling.labeller import predict_labels
from ccsegformer.labelling.loading import load_engine
from ccsegformer.labelling.model_files import open_model_file
from ccsegformer.labelling.preprocess import given_preprocessing
from ccsegformer.labelling.scene import predict_scene
from tests.labelling.test_scene import image, read, tiny_model, write_scene

CLASSES = Classes(("ground", "water", "road"))


class Plain(nn.Module):
    """Scores three classes of two bands at full resolution, with a context of 7 pixels."""

    def __init__(self, bands: int = 3) -> None:
        super().__init__()
        self.score = nn.Conv2d(bands, 3, 7, padding=3)
        generator = torch.Generator().manual_seed(0)
        self.score.weight.data = torch.randn(3, bands, 7, 7, generator=generator)
        self.score.bias.data.zero_()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.score(pixels)


def unet(bands: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = smp.Unet("resnet18", encoder_weights=None, in_channels=bands, classes=3)
        nn.init.normal_(model.segmentation_head[0].weight)
    return model


def whole_labels(model: nn.Module, pixels: torch.Tensor) -> np.ndarray:
    """Labels from one pass over the image, padded to multiples of 32."""
    height, width = pixels.shape[1:]
    padded = F.pad(pixels, (0, -width % 32, 0, -height % 32))
    with torch.inference_mode():
        logits = model.eval()(padded[None])
        logits = F.interpolate(logits, size=padded.shape[1:], mode="bilinear")
    return logits.argmax(1)[0, :height, :width].numpy()


def test_a_unet_maps_a_scene_in_one_window_as_it_labels_the_image(tmp_path: Path) -> None:
    model, scene = unet(), write_scene(tmp_path / "scene.tif")
    done = predict_scene(model.train(), scene, tmp_path / "map.tif", classes=CLASSES)
    assert done.window == 512 and model.training
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), whole_labels(model, normalize(image(scene))))


def test_windows_of_a_network_with_little_context_leave_no_seam(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", 300, 500)
    predict_scene(Plain(), scene, tmp_path / "map.tif", classes=CLASSES, window=128, overlap=64)
    found, expected = read(tmp_path / "map.tif"), whole_labels(Plain(), normalize(image(scene)))
    assert len(np.unique(expected)) == 3
    # A window's outermost 3 pixels see padding; their weights are close to 0.
    assert (found == expected).mean() > 0.995


def test_bands_and_normalisation_are_given(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene.tif", bands=4, dtype="uint16", photometric="MINISBLACK")
    options = {"classes": CLASSES, "bands": (4, 2)}
    with pytest.raises(DataError, match="uint16 values for a model of 8-bit colours"):
        predict_scene(Plain(2), scene, tmp_path / "map.tif", **options)
    preprocessing = given_preprocessing([100.0, 120.0], [50.0, 60.0])
    predict_scene(Plain(2), scene, tmp_path / "map.tif", preprocessing=preprocessing, **options)
    values = image(scene)[[3, 1]].float()
    pixels = (values - torch.tensor([100.0, 120])[:, None, None]) / torch.tensor([50.0, 60])[:, None, None]
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), whole_labels(Plain(2), pixels))
    options["bands"] = (4, 7)
    with pytest.raises(DataError, match=r"scene\.tif: has no band 7; its bands are 1, 2, 3, 4"):
        predict_scene(Plain(2), scene, tmp_path / "map.tif", preprocessing=preprocessing, **options)
    with pytest.raises(DataError, match="give them in stored units"):
        small = given_preprocessing([0.4, 0.5], [0.2, 0.2])
        predict_scene(
            Plain(2), scene, tmp_path / "map.tif", preprocessing=small, classes=CLASSES, bands=(1, 2)
        )


def test_transformers_own_segformer_maps_as_ours(tmp_path: Path) -> None:
    ours = tiny_model(attention="efficient")
    ours.save_pretrained(tmp_path / "model")
    theirs = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "model")
    scene = write_scene(tmp_path / "scene.tif", 200, 330)
    for name, model in (("ours", ours), ("theirs", theirs)):
        options = {"window": 96, "overlap": 32, "engine": "torch", "classes": CLASSES}
        predict_scene(model, scene, tmp_path / f"{name}.tif", **options)
    assert (read(tmp_path / "ours.tif") == read(tmp_path / "theirs.tif")).mean() > 0.9999


def test_classes_come_from_the_configuration(tmp_path: Path) -> None:
    config = SegformerConfig(
        hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=2
    )
    config.id2label = {0: "roof", 1: "other"}
    scene = write_scene(tmp_path / "scene.tif", 70, 70)
    predict_scene(SegformerForSemanticSegmentation(config), scene, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.tags(1)["class_0"] == "roof"
    with pytest.raises(DataError, match="Plain: does not name its classes"):
        predict_scene(Plain(), scene, tmp_path / "map.tif")


def test_a_folder_of_another_architecture_with_its_image_processor(tmp_path: Path) -> None:
    config = MobileViTConfig(
        image_size=64,
        hidden_sizes=[8, 8, 8],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 8],
        num_attention_heads=1,
        aspp_out_channels=8,
        id2label={0: "a", 1: "b", 2: "c"},
    )
    MobileViTForSemanticSegmentation(config).save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="cannot be loaded for semantic segmentation"):
        load_engine(tmp_path / "model")
    MobileViTImageProcessor(do_flip_channel_order=False).save_pretrained(tmp_path / "model")
    engine, classes = load_engine(tmp_path / "model")
    assert classes.names == ("a", "b", "c") and engine.name == "torch"
    assert engine.preprocessing.statistics is not None
    assert engine.preprocessing.statistics.stds == pytest.approx((255.0,) * 3)  # rescaled, not normalised
    pixels = torch.randint(256, (3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert predict_labels(engine, pixels).shape == (70, 90)
    MobileViTImageProcessor(do_flip_channel_order=True).save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="blue, green, red"):
        load_engine(tmp_path / "model")


def test_torchvisions_models_and_functions(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            num_classes=3, weights_backbone=None
        )
    scene = write_scene(tmp_path / "scene.tif", 100, 90)
    predict_scene(model, scene, tmp_path / "a.tif", classes=CLASSES)
    model.eval()
    predict_scene(lambda pixels: model(pixels)["out"], scene, tmp_path / "b.tif", classes=CLASSES)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", ["onnxruntime", "openvino", "xml", "pt2"])
def test_files_from_elsewhere_map_as_the_model(tmp_path: Path, kind: str, fixed: bool) -> None:
    model, pixels = unet().eval(), torch.zeros(1, 3, 128, 128)
    path = tmp_path / {"xml": "net.xml", "pt2": "net.pt2"}.get(kind, "net.onnx")
    dynamic = None if fixed else ({2: 32 * torch.export.Dim("h"), 3: 32 * torch.export.Dim("w")},)
    program = torch.export.export(model, (pixels,), dynamic_shapes=dynamic)
    if kind == "pt2":
        torch.export.save(program, path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "net.onnx")
        if kind == "xml":
            openvino.save_model(
                openvino.Core().read_model(tmp_path / "net.onnx"), path, compress_to_fp16=False
            )
    engine, classes = open_model_file(path, kind if kind in ("onnxruntime", "openvino") else None)
    assert classes is None and engine.fixed_size == ((128, 128) if fixed else None)
    scene = write_scene(tmp_path / "scene.tif", 200, 150)
    done = predict_scene(engine, scene, tmp_path / "found.tif", classes=CLASSES)
    assert done.window == (128 if fixed else 512)
    options = {"window": done.window, "overlap": done.overlap}
    predict_scene(model, scene, tmp_path / "expected.tif", classes=CLASSES, **options)
    agreement = (read(tmp_path / "found.tif") == read(tmp_path / "expected.tif")).mean()
    # The fixed size pads what is left of the scene to the whole window, the free one to 32 pixels.
    assert agreement > (0.9 if fixed else 0.9999)


def test_an_interrupted_run_of_another_model_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = write_scene(tmp_path / "scene.tif", 300, 200)
    options = {"classes": CLASSES, "window": 64, "overlap": 32}
    predict_scene(Plain(), scene, tmp_path / "whole.tif", **options)
    calls = 0

    class Stops(Plain):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise KeyboardInterrupt
            return super().forward(pixels)

    for stop_at in (30, 40, -1):
        before = calls
        try:
            predict_scene(Stops(), scene, tmp_path / "map.tif", **options)
        except KeyboardInterrupt:
            assert stop_at > 0
    assert calls - before < 40  # of 54 windows
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


@pytest.mark.parametrize(
    ("segmenter", "message"),
    [
        (lambda pixels: pixels[:, :1], "1 logit a pixel for 3 classes"),
        (lambda pixels: pixels[:, :0], r"not logits \(batch, K, h, w\)"),
        (lambda pixels: "labels", "the model returns str, not logits"),
        (lambda pixels: pixels * float("nan"), "logits are not finite"),
        (lambda pixels: pixels[:, [0, 1]], "2 logits a pixel for 3 classes"),
        ("/nowhere/model", "/nowhere/model: "),
        (3, "not a model"),
    ],
)
def test_what_is_no_segmenter_is_one_line(tmp_path: Path, segmenter: object, message: str) -> None:
    scene = write_scene(tmp_path / "scene.tif", 64, 64)
    with pytest.raises((EngineError, CheckpointError), match=message) as caught:
        predict_scene(segmenter, scene, tmp_path / "map.tif", classes=CLASSES)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_the_number_of_classes_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 classes for a model of 3"):
        open_engine(tiny_model())
        predict_scene(tiny_model(), "a.tif", tmp_path / "b.tif", classes=Classes(("a", "b")))
