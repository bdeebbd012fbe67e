"""Exported files reproduce PyTorch's logits at sizes other than the traced ones, and describe themselves."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import ccsegformer
from ccsegformer.data.labels import Classes
from ccsegformer.errors import CCSegformerError, ExportError
from ccsegformer.export import describe, export, smallest_side
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

CLASSES = Classes(("ground", "water", "road"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), 200)
TINY = {  # two stages have every kind of module and take half the time
    "num_encoder_blocks": 2,
    "hidden_sizes": (8, 16),
    "depths": (1, 1),
    "num_attention_heads": (1, 2),
    "decoder_hidden_size": 16,
    "num_labels": 3,
}
RECURRENT = {**TINY, "recurrence": 2, "attention": ("criss_cross", "efficient")}
CCNET = {**TINY, "projection": "ccnet", "attention": ("criss_cross", "none")}
PLAIN = {**TINY, "attention": "none"}
SIZES = [(1, 64, 64), (2, 75, 161), (3, 130, 67)]  # batch, height, width


def tiny(**values) -> CrissCrossSegformerForSemanticSegmentation:
    """Return a model whose parameters all affect the logits: none is 0 or 1."""
    model = CrissCrossSegformerForSemanticSegmentation(CrissCrossSegformerConfig(**values)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = 0.3 * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise.abs() + 1 if name.endswith(("norm.weight", "running_var")) else noise)
    return model


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, height, width, generator=generator) for batch, height, width in SIZES]


def assert_logits_agree(model: torch.nn.Module, logits: list[torch.Tensor]) -> None:
    for pixels, ours in zip(inputs(), logits, strict=True):
        with torch.inference_mode():
            expected = model(pixels).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    ("values", "context"),
    [(RECURRENT, nullcontext), (CCNET, torch.inference_mode)],
    ids=["recurrent", "ccnet-in-inference-mode"],
)
def test_pt2_gives_pytorchs_logits_with_pytorch_alone(values, context, tmp_path):
    model = tiny(**values).bfloat16().train()
    path = tmp_path / "model.pt2"
    with context():
        assert export(model, CLASSES, path, "pt2") < 1e-5
    assert model.training and model.dtype == torch.bfloat16, "the caller's model must not change"
    torch.save(inputs(), tmp_path / "inputs.pt")
    script = """
import sys
sys.modules["ccsegformer"] = sys.modules["transformers"] = None  # makes importing them fail
import torch
described = {"class_names": ""}
model = torch.export.load("model.pt2", extra_files=described).module()
torch.save([model(pixels) for pixels in torch.load("inputs.pt")], "logits.pt")
print(described["class_names"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["ground", "water", "road"]
    assert_logits_agree(model.float().eval(), torch.load(tmp_path / "logits.pt"))
    assert str(Path(ccsegformer.__file__).parent).encode() not in path.read_bytes()


@pytest.mark.parametrize("attention", ["efficient", ("criss_cross", "none")])
def test_the_metadata_holds_all_that_labelling_needs(attention, tmp_path):
    tiny(**{**TINY, "attention": attention, "num_channels": 5}).save_pretrained(tmp_path)
    model = CrissCrossSegformerForSemanticSegmentation.from_pretrained(tmp_path, attention=attention)
    entries = describe(model.config, CLASSES)
    assert str(tmp_path) not in "".join(entries.values()), "the metadata must not contain local paths"
    about = {name: json.loads(entry) for name, entry in entries.items()}
    assert (
        Classes(tuple(about["class_names"]), tuple(map(tuple, about["palette"])), about["ignore_index"])
        == CLASSES
    )
    assert (about["num_channels"], about["smallest_side"]) == (5, 64)
    assert about["image_mean"] == [0.485, 0.456, 0.406] and about["rescale_factor"] == 1 / 255
    assert about["attention"] == list(model.config.stage_attention)
    assert about["ccsegformer_version"] == ccsegformer.__version__
    config = CrissCrossSegformerConfig.from_dict(about["config"])
    assert config.to_diff_dict() == model.config.to_diff_dict()
    assert config.stage_attention == model.config.stage_attention


@pytest.fixture(scope="module")
def model():
    return tiny(**PLAIN)


class Noise(torch.nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + torch.randn_like(features)


def test_a_file_that_disagrees_with_pytorch_is_not_written(tmp_path):
    model = tiny(**PLAIN)
    model.decode_head.dropout = Noise()
    with pytest.raises(ExportError, match=r"model\.pt2: not written: .* differ from PyTorch"):
        export(model, CLASSES, tmp_path / "model.pt2", "pt2")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("factor", "message"), [(float("inf"), "even in PyTorch"), (1e4, "unlike PyTorch's")]
)
def test_logits_that_are_not_finite(factor, message, tmp_path, monkeypatch):
    # PyTorch handles scores that lie very far apart; an exported file does not, in lines of more than 64.
    monkeypatch.setattr("ccsegformer.ops.explicit.LANDMARKS", 4)
    model = tiny(**{**TINY, "attention": ("criss_cross", "none")})
    attention = model.segformer.stages[0].blocks[0].attention
    attention.q_proj.weight.data *= factor
    path = tmp_path / "model.pt2"
    with pytest.raises(ExportError, match=rf"model\.pt2: not written: .*{message}"):
        export(model, CLASSES, path, "pt2")
    assert not any(tmp_path.iterdir())


def test_without_onnx_runtime_the_file_is_written_unchecked(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = tmp_path / "new" / "model.onnx"
    assert export(model, CLASSES, path, "onnx") is None
    assert path.stat().st_size > 0


def test_the_smallest_side_of_the_published_sizes():
    assert {smallest_side(CrissCrossSegformerConfig.mit(size)) for size in ("b0", "b5")} == {64}


def untraceable(**values) -> CrissCrossSegformerForSemanticSegmentation:
    """Return a model without storage: running or copying it fails, and its size costs nothing."""
    with torch.device("meta"):
        return CrissCrossSegformerForSemanticSegmentation(CrissCrossSegformerConfig(**{**PLAIN, **values}))


def no_onnxscript(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere


@pytest.mark.parametrize(
    ("name", "format", "prepare", "message"),
    [
        ("model.pt2", "tflite", None, "one of onnx, pt2, not 'tflite'"),
        ("model.onnx", "onnx", no_onnxscript, r"pip install 'ccsegformer\[export\]'"),
        ("", "pt2", None, "is a folder"),
        ("file", "pt2", None, "file: already exists"),
        ("file/model.pt2", "pt2", None, "file is not a writable folder"),
        ("new/model.pt2", "pt2", read_only, "is not a writable folder"),
    ],
)
def test_bad_arguments_are_reported_before_the_model_runs(
    name, format, prepare, message, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    if prepare:
        prepare(monkeypatch)
    with pytest.raises(CCSegformerError, match=message) as caught:
        export(untraceable(), CLASSES, tmp_path / name, format)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_too_large_for_onnx_is_refused(tmp_path):
    with pytest.raises(ExportError, match="use pt2"):
        export(untraceable(decoder_hidden_size=2**14), CLASSES, tmp_path / "model.onnx", "onnx")
    assert not any(tmp_path.iterdir())
