"""Checkpoints of NVlabs and mmsegmentation give the logits of the networks that they are from."""

import os
import pickle
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import SegformerForSemanticSegmentation, SegformerModel

from ccsegformer.errors import CheckpointError
from ccsegformer.models import configuration_ccsegformer, load_pretrained, load_trained
from ccsegformer.models.original_checkpoints import convert_original

WIDTHS, DEPTHS, HEADS, REDUCTIONS = (8, 16, 40, 64), (1, 2, 1, 1), (1, 2, 5, 8), (8, 4, 2, 1)
DECODER, CLASSES, NAMES = 12, 3, ("road", "sky", "road")
PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def tiny_b0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let B0 be small."""
    monkeypatch.setitem(configuration_ccsegformer._MIT, "b0", (WIDTHS, DEPTHS, DECODER))


def nvlabs_weights(head: bool = True) -> Weights:
    """Draw weights with the names and shapes of NVlabs' modules."""
    generator = torch.Generator().manual_seed(1)
    weights: Weights = {}

    def add(name: str, *shape: int) -> None:
        weights[f"{name}.weight"] = (
            torch.randn(*shape, generator=generator) / max(shape[1:], default=1) ** 0.5
        )
        weights[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1

    for stage, (width, ratio) in enumerate(zip(WIDTHS, REDUCTIONS, strict=True)):
        bands, side = (WIDTHS[stage - 1], 3) if stage else (3, 7)
        add(f"patch_embed{stage + 1}.proj", width, bands, side, side)
        for name in (f"patch_embed{stage + 1}.norm", f"norm{stage + 1}"):
            add(name, width)
        for index in range(DEPTHS[stage]):
            block = f"block{stage + 1}.{index}"
            for name in ("norm1", "norm2"):
                add(f"{block}.{name}", width)
            for name, rows in (("q", width), ("kv", 2 * width), ("proj", width)):
                add(f"{block}.attn.{name}", rows, width)
            if ratio > 1:
                add(f"{block}.attn.sr", width, width, ratio, ratio)
                add(f"{block}.attn.norm", width)
            add(f"{block}.mlp.fc1", 4 * width, width)
            add(f"{block}.mlp.dwconv.dwconv", 4 * width, 1, 3, 3)
            add(f"{block}.mlp.fc2", width, 4 * width)
    if not head:
        return weights
    weights = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    for stage, width in enumerate(WIDTHS):
        add(f"decode_head.linear_c{stage + 1}.proj", DECODER, width)
    add("decode_head.linear_fuse.conv", DECODER, 4 * DECODER, 1, 1)
    del weights["decode_head.linear_fuse.conv.bias"]
    add("decode_head.linear_fuse.bn", DECODER)
    weights["decode_head.linear_fuse.bn.running_mean"] = torch.randn(DECODER, generator=generator)
    weights["decode_head.linear_fuse.bn.running_var"] = torch.rand(DECODER, generator=generator) + 0.5
    weights["decode_head.linear_fuse.bn.num_batches_tracked"] = torch.tensor(7)
    add("decode_head.linear_pred", CLASSES, DECODER, 1, 1)
    add("decode_head.conv_seg", CLASSES, DECODER, 1, 1)  # of a base class, never called
    return weights


def nvlabs_features(weights: Weights) -> list[Tensor]:
    """Compute the encoder's features as NVlabs' modules do, but for transformers' epsilon of layer norms."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def conv(x: Tensor, name: str, **options: Any) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def attention(x: Tensor, name: str, stage: int, size: torch.Size) -> Tensor:
        queries, heads, source = linear(x, f"{name}.q"), HEADS[stage], x
        if (ratio := REDUCTIONS[stage]) > 1:
            reduced = conv(x.mT.unflatten(2, size), f"{name}.sr", stride=ratio)
            source = norm(reduced.flatten(2).mT, f"{name}.norm")
        keys, values = linear(source, f"{name}.kv").chunk(2, dim=-1)
        queries, keys, values = (
            each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (queries, keys, values)
        )
        shares = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1)
        return linear((shares @ values).transpose(1, 2).flatten(2), f"{name}.proj")

    def feed_forward(x: Tensor, name: str, size: torch.Size) -> Tensor:
        image = linear(x, f"{name}.fc1").mT.unflatten(2, size)
        image = conv(image, f"{name}.dwconv.dwconv", padding=1, groups=image.shape[1])
        return linear(F.gelu(image).flatten(2).mT, f"{name}.fc2")

    features, image = [], PIXELS
    for stage in range(4):
        stride, padding = (2, 1) if stage else (4, 3)
        image = conv(image, f"patch_embed{stage + 1}.proj", stride=stride, padding=padding)
        size = image.shape[2:]
        x = norm(image.flatten(2).mT, f"patch_embed{stage + 1}.norm")
        for index in range(DEPTHS[stage]):
            block = f"block{stage + 1}.{index}"
            x = x + attention(norm(x, f"{block}.norm1"), f"{block}.attn", stage, size)
            x = x + feed_forward(norm(x, f"{block}.norm2"), f"{block}.mlp", size)
        image = norm(x, f"norm{stage + 1}").mT.unflatten(2, size)
        features.append(image)
    return features


def nvlabs_logits(weights: Weights) -> Tensor:
    """Compute the logits as NVlabs' head does: stages joined from the coarsest on."""
    own = {name.removeprefix("backbone."): tensor for name, tensor in weights.items()}
    head = {name.removeprefix("decode_head."): tensor for name, tensor in weights.items()}
    features, joined = nvlabs_features(own), []
    for stage in (3, 2, 1, 0):
        name = f"linear_c{stage + 1}.proj"
        image = F.conv2d(features[stage], head[f"{name}.weight"][:, :, None, None], head[f"{name}.bias"])
        joined.append(F.interpolate(image, features[0].shape[2:], mode="bilinear"))
    fused = F.conv2d(torch.cat(joined, dim=1), head["linear_fuse.conv.weight"])
    keys = ("running_mean", "running_var", "weight", "bias")
    fused = F.batch_norm(fused, *(head[f"linear_fuse.bn.{key}"] for key in keys))
    return F.conv2d(fused.relu(), head["linear_pred.weight"], head["linear_pred.bias"])


def mmsegmentation_weights(weights: Weights) -> Weights:
    """Rename NVlabs' encoder as mmsegmentation's converter does."""
    renamed: Weights = {}
    for name, tensor in weights.items():
        first, _, rest = name.partition(".")
        stage = int(first[-1]) - 1
        if first.startswith("patch_embed"):
            renamed[f"layers.{stage}.0.{rest.replace('proj.', 'projection.')}"] = tensor
        elif first.startswith("norm"):
            renamed[f"layers.{stage}.2.{rest}"] = tensor
        elif "attn.q." in rest:
            own = f"layers.{stage}.1.{rest.replace('attn.q.', 'attn.attn.in_proj_')}"
            renamed[own] = torch.cat([tensor, weights[name.replace("attn.q.", "attn.kv.")]])
        elif "attn.kv." not in rest:
            for old, new in (
                ("attn.proj.", "attn.attn.out_proj."),
                ("mlp.fc1.", "ffn.layers.0."),
                ("mlp.dwconv.dwconv.", "ffn.layers.1."),
                ("mlp.fc2.", "ffn.layers.4."),
            ):
                rest = rest.replace(old, new)
            is_matrix = ".ffn.layers." in rest and tensor.ndim == 2
            renamed[f"layers.{stage}.1.{rest}"] = tensor[:, :, None, None] if is_matrix else tensor
    return renamed


def mmsegmentation_head() -> Weights:
    """Draw part of mmsegmentation's decode head."""
    return {
        "decode_head.conv_seg.weight": torch.randn(CLASSES, DECODER, 1, 1),
        "decode_head.convs.0.conv.weight": torch.randn(DECODER, 8, 1, 1),
        "decode_head.convs.0.bn.weight": torch.randn(DECODER),
        "decode_head.fusion_conv.conv.weight": torch.randn(DECODER, 4 * DECODER, 1, 1),
    }


def saved(content: Any, folder: Path, name: str = "x.pth", **options: Any) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


@pytest.mark.parametrize(
    "pack",
    [
        lambda weights: weights,
        lambda weights: {"model": {f"module.{name}": tensor for name, tensor in weights.items()}},
        lambda weights: {"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}},
    ],
    ids=["bare", "model", "distributed"],
)
def test_a_whole_model_of_nvlabs_gives_its_logits(
    pack: Callable[[Weights], dict[str, Any]], tmp_path: Path
) -> None:
    weights = nvlabs_weights()
    converted = convert_original(saved(pack(weights), tmp_path))
    assert converted.size == "b0" and converted.has_head and not converted.has_names
    assert converted.unused == ("decode_head.conv_seg.bias", "decode_head.conv_seg.weight")
    assert len(converted.used) + len(converted.unused) == len(weights)
    converted.model.save_pretrained(tmp_path / "model")
    expected = nvlabs_logits(weights)
    theirs = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "model").eval()
    with torch.inference_mode():
        for model in (converted.model, load_trained(str(tmp_path / "model")), theirs):
            torch.testing.assert_close(model(PIXELS).logits, expected, rtol=1e-4, atol=1e-4)
    assert theirs.decode_head.batch_norm.num_batches_tracked == 7


@pytest.mark.parametrize("rename", [dict, mmsegmentation_weights], ids=["nvlabs", "mmsegmentation"])
def test_an_encoder_gives_its_features(
    rename: Callable[[Weights], Weights], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = nvlabs_weights(head=False)
    classifier = {"head.weight": torch.randn(10, 64), "head.bias": torch.randn(10)}
    converted = convert_original(saved({**rename(weights), **classifier}, tmp_path))
    assert converted.unused == ("head.bias", "head.weight") and not converted.has_head
    converted.model.save_pretrained(tmp_path / "mit")
    theirs = SegformerModel.from_pretrained(tmp_path / "mit").eval()
    ours, summary = load_pretrained(str(tmp_path / "mit"), attention="efficient", num_labels=4)
    assert all(name.startswith("decode_head.") for name in summary.new) and not summary.dropped
    with torch.inference_mode():
        for encoder in (theirs, ours.eval().segformer):
            features = encoder(PIXELS, output_hidden_states=True).hidden_states
            torch.testing.assert_close(list(features), nvlabs_features(weights), rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="not a trained segmentation model"):
        load_trained(str(tmp_path / "mit"))


def test_the_head_of_mmsegmentation_is_refused_and_left_out_on_request(tmp_path: Path) -> None:
    encoder = mmsegmentation_weights(nvlabs_weights(head=False))
    weights = {f"backbone.{name}": tensor for name, tensor in encoder.items()} | mmsegmentation_head()
    path = saved({"meta": {"CLASSES": NAMES}, "state_dict": weights}, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"x\.pth: .*mmsegmentation's, with batch norm and ReLU .*--enc"
    ):
        convert_original(path)
    converted = convert_original(path, encoder_only=True)
    assert converted.unused == tuple(sorted(mmsegmentation_head()))
    with pytest.raises(CheckpointError, match="no classes"):
        convert_original(path, NAMES, encoder_only=True)


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": NAMES, "epoch": 3, "hook_msgs": {"best_score": np.float64(0.4), "last_ckpt": "a.pth"}},
        {"dataset_meta": {"classes": list(NAMES), "palette": np.zeros((3, 3), np.uint8)}},
    ],
    ids=["0.x", "1.x"],
)
def test_class_names_of_the_file(meta: dict[str, Any], tmp_path: Path) -> None:
    path = saved({"meta": meta, "state_dict": nvlabs_weights(), "optimizer": {"param_groups": []}}, tmp_path)
    converted = convert_original(path)
    assert converted.has_names and tuple(converted.model.config.id2label.values()) == NAMES
    renamed = convert_original(path, ["a", "b", "c"]).model.config
    assert renamed.id2label == {0: "a", 1: "b", 2: "c"}
    with pytest.raises(CheckpointError, match="2 class names for a model of 3 classes"):
        convert_original(path, ["a", "b"])


def test_half_precision_and_other_bands(tmp_path: Path) -> None:
    weights = {name: tensor.half() for name, tensor in nvlabs_weights(head=False).items()}
    weights["patch_embed1.proj.weight"] = torch.randn(8, 5, 7, 7)
    model = convert_original(saved(weights, tmp_path, "x.bin")).model
    assert model.config.num_channels == 5 and model.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "backbone.block2.1.attn.kv.weight",
            lambda w: w[:-2],
            r"kv\.weight has shape \(30, 16\).*\(32, 16\)",
        ),
        ("backbone.norm4.bias", lambda w: w[:5], r"norm4\.bias has shape \(5,\).*needs \(64,\)"),
        ("decode_head.linear_c2.proj.weight", lambda w: w.T, r"linear_c2.* \(16, 12\).*needs \(12, 16\)"),
        (
            "backbone.block1.0.mlp.fc2.bias",
            None,
            r"lacks the tensor for segformer\.stages\.0.*mlp\.fc2\.bias",
        ),
        ("backbone.patch_embed3.proj.weight", None, "lacks the patch embedding's convolution of stage 3"),
        ("decode_head.linear_fuse.conv.weight", None, "lacks the convolution for decode_head.linear_fuse"),
        ("decode_head.linear_fuse.bn.running_var", None, "lacks the tensor for decode_head.batch_norm"),
        ("backbone.block3.1.norm1.weight", torch.ones(40), r"depths \[1, 2, 2, 1\] are not those"),
        (
            "backbone.block4.0.attn.sr.weight",
            torch.ones(64, 64, 1, 1),
            "attn.sr.weight, which SegFormer-B0 does",
        ),
        ("backbone.block1.0.attn.rel_pos", torch.ones(1), "attn.rel_pos is no tensor of SegFormer"),
        ("decode_head.psp.weight", torch.ones(1), "decode_head.psp.weight is of another decode head"),
        ("module.backbone.norm1.bias", torch.ones(8), "same name"),
        ("backbone.norm1.bias", "text", "'backbone.norm1.bias' in its state dict is no plain tensor"),
    ],
)
def test_every_tensor_is_accounted_for(name: str, change: Any, message: str, tmp_path: Path) -> None:
    weights: dict[str, Any] = nvlabs_weights()
    if change is None:
        del weights[name]
    else:
        weights[name] = change(weights[name]) if callable(change) else change
    with pytest.raises(CheckpointError, match=rf"x\.pth: .*{message}") as caught:
        convert_original(saved(weights, tmp_path))
    assert "\n" not in str(caught.value)


class Trap:
    """Object that creates a folder when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "trap",
    [
        Trap(os.mkdir, "trapped"),
        Trap(eval, "__import__('os').mkdir('trapped')"),
        Trap(Path.mkdir, Path("trapped")),
        Trap(defaultdict, int),
    ],
    ids=["os", "eval", "pathlib", "harmless"],
)
def test_code_in_a_file_is_not_run(
    trap: Trap, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": nvlabs_weights(), "meta": {"hook": trap}}
    path = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"more than weights \([\w.]+\).*'state_dict'") as caught:
        convert_original(path)
    assert "\n" not in str(caught.value) and not Path("trapped").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_truncated_files(kept: float, zipped: bool, tmp_path: Path) -> None:
    path = saved(nvlabs_weights(), tmp_path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(CheckpointError, match=r"x\.pth: damaged"):
        convert_original(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 nothing", "damaged"),
        (b"<html>not found</html>", "damaged"),
        (pickle.dumps({"a": 1}), "damaged|no plain tensor"),
        ({"state_dict": {}}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({"conv1.weight": torch.ones(3)}, "none of its 1 tensors"),
        ({"epoch": 3}, "no plain tensor"),
    ],
)
def test_other_files(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"x\.pth: .*({message})"):
        convert_original(path)


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"y\.pth: cannot be read: No such file"):
        convert_original(tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert_original(tmp_path)
