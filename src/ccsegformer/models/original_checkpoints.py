"""Convert SegFormer checkpoints of NVlabs and mmsegmentation (.pth), without running code from the file."""

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ccsegformer.errors import CheckpointError
from ccsegformer.models.configuration_ccsegformer import CrissCrossSegformerConfig
from ccsegformer.models.modeling_ccsegformer import (
    CrissCrossSegformerForSemanticSegmentation,
    CrissCrossSegformerModel,
)

_UNUSED = re.compile(r"(head|auxiliary_head|data_preprocessor)\..*|ema_.*")
"""Tensors that SegFormer does without: ImageNet's classifier, heads for training only, averages."""
_SIZES = ("b0", "b1", "b2", "b3", "b4", "b5")
_PLAIN_NUMPY: list[Any] = [
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for name, function in (
            ("scalar", np.float64(0).__reduce__()[0]),
            ("_reconstruct", np.zeros(0).__reduce__()[0]),
        )
        for core in ("core", "_core")
    ),
    *(np.ndarray, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))),
    *(type(np.dtype(np.int64)), type(np.dtype(np.int32)), type(np.dtype(np.uint8))),
]
"""NumPy's numbers and arrays, which checkpoints hold as scores and palettes."""

# Modules of a stage, as NVlabs and as mmsegmentation call them, and the model's that share their rows.
_STAGE = {
    "patch_embed.proj": ("patch_embeddings.proj",),
    "patch_embed.projection": ("patch_embeddings.proj",),
    "patch_embed.norm": ("patch_embeddings.layer_norm",),
    "norm": ("layer_norm",),
}
_BLOCK = {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attn.q": ("attention.q_proj",),
    "attn.kv": ("attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "attn.sr": ("attention.sequence_reduction.sequence_reduction",),
    "attn.norm": ("attention.sequence_reduction.layer_norm",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.dwconv.dwconv": ("mlp.dwconv.dwconv",),
    "mlp.fc2": ("mlp.fc2",),
    "attn.attn.in_proj": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.attn.out_proj": ("attention.o_proj",),
    "ffn.layers.0": ("mlp.fc1",),
    "ffn.layers.1": ("mlp.dwconv.dwconv",),
    "ffn.layers.4": ("mlp.fc2",),
}
_HEAD = {
    **{f"linear_c{stage + 1}.proj": f"linear_projections.{stage}.proj" for stage in range(4)},
    "linear_fuse.conv": "linear_fuse",
    "linear_fuse.bn": "batch_norm",
    "linear_pred": "classifier",
}


class _Placed(NamedTuple):
    """Weights of one of the model's tensors, and the tensor of the file that they are one of `parts` of."""

    weights: Tensor
    source: str
    parts: int = 1


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A model with the weights of a checkpoint.

    Attributes:
        model: Segmentation model, or the encoder alone; with efficient attention, so `save_pretrained` writes
            a plain SegFormer.
        size: "b0" to "b5".
        has_head: Whether the model has a decode head.
        has_names: Whether its classes have names.
        used, unused: Names of the checkpoint's tensors, sorted.
    """

    model: CrissCrossSegformerForSemanticSegmentation | CrissCrossSegformerModel
    size: str
    has_head: bool
    has_names: bool
    used: tuple[str, ...]
    unused: tuple[str, ...]

    def describe(self) -> list[str]:
        """Say in lines what the model is, and which tensors of the checkpoint it does without."""
        name, classes = f"SegFormer-{self.size.upper()}", self.model.config.num_labels
        what = f"{name}, {classes} classes" if self.has_head else f"encoder of {name}"
        lines = [f"{what}: {len(self.used)} tensors used, {len(self.unused)} unused"]
        lines += [f"  unused: {name}" for name in self.unused]
        if not self.has_head:
            lines.append("no decode head: train one with this folder as the recipe's model.pretrained")
        elif not self.has_names:
            lines.append(
                "the file names no classes: they are LABEL_0, LABEL_1, ...; name them with --classes"
            )
        return lines


def convert_original(
    path: str | Path, names: Sequence[str] | None = None, *, encoder_only: bool = False
) -> ConvertedCheckpoint:
    """Convert a checkpoint of NVlabs' or mmsegmentation's SegFormer, an encoder or a whole model.

    The file is read by PyTorch's weights-only unpickler, which calls no code that the file names. Weights
    become float32.

    Args:
        path: File written by `torch.save`: a state dict, or a dictionary with one in `state_dict` or `model`.
        names: Class names; by default those in the file.
        encoder_only: Whether to leave out the decode head.

    Raises:
        CheckpointError: The file is no such checkpoint, is damaged or holds other objects; it has a decode
            head that SegFormer does not have, such as mmsegmentation's; a tensor is missing, unknown or
            misshapen; or the names do not match the classes.
    """
    content = _read_file(path)
    weights = _state_dict(content, path)
    unused = [name for name in weights if _is_unused(name, weights, encoder_only)]
    placed = _find_places({name: weights[name] for name in weights if name not in unused}, path)
    size, values = _recognise(placed, path)
    has_head = any(name.startswith("decode_head.") for name in placed)
    if has_head:
        names = _class_names(content) if names is None else names
        values |= _head_values(placed, names, path)
    elif names is not None:
        raise CheckpointError(f"{path}: an encoder alone has no classes: leave them out")
    try:
        config = CrissCrossSegformerConfig.mit(size, attention="efficient", **values)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    model_class = CrissCrossSegformerForSemanticSegmentation if has_head else CrissCrossSegformerModel
    with torch.device("meta"):  # draws no weights that would be replaced
        model = model_class(config)
    prefix = "" if has_head else "segformer."
    shapes = {prefix + name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _check_shapes(placed, shapes, f"SegFormer-{size.upper()}", path)
    state = {name.removeprefix(prefix): each.weights for name, each in placed.items()}
    model.load_state_dict(state, assign=True)
    used = sorted({each.source for each in placed.values()})
    return ConvertedCheckpoint(model.eval(), size, has_head, bool(names), tuple(used), tuple(sorted(unused)))


def _read_file(path: str | Path) -> Any:
    """Read a pickled file without calling code that it names."""
    try:
        Path(path).open("rb").close()  # for its own messages; a damaged archive is an OSError as well
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN_NUMPY):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+) (was|whose)", str(error))
        if found is None:
            raise CheckpointError(f"{path}: damaged, or not written by torch.save") from error
        raise CheckpointError(
            f"{path}: holds more than weights ({found[1]}), which could run any code; if you "
            "trust it, save its weights alone where it was made: torch.save({'state_dict': "
            "torch.load(FILE, weights_only=False)['state_dict']}, 'weights.pth')"
        ) from error
    except Exception as error:  # whatever damaged pickles and archives raise
        raise CheckpointError(f"{path}: damaged, or not written by torch.save") from error


def _state_dict(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, without the prefixes of distributed training and of backbones."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds no state dict, alone or as 'state_dict' or 'model'")
    weights = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise CheckpointError(f"{path}: {name!r} in its state dict is no plain tensor")
        weights[re.sub(r"^(module\.)*(backbone\.)?", "", name)] = tensor
    if len(weights) < len(content):
        raise CheckpointError(f"{path}: has tensors of the same name with and without 'backbone.'")
    return weights


def _is_plain(tensor: Any) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_quantized or tensor.is_complex())
    )


def _is_unused(name: str, weights: Mapping[str, Tensor], encoder_only: bool) -> bool:
    """Whether the model does without a tensor. NVlabs' head has a second classifier, which it never calls."""
    second = name.startswith("decode_head.conv_seg.") and "decode_head.linear_pred.weight" in weights
    return second or bool(_UNUSED.fullmatch(name)) or (encoder_only and name.startswith("decode_head."))


def _find_places(weights: Mapping[str, Tensor], path: str | Path) -> dict[str, _Placed]:
    """Give each tensor the name, or the names for its parts, that it has in the model."""
    targets = {name: _own_names(name) for name in weights}
    if not any(name.startswith("segformer.") for found in targets.values() for name in found):
        raise CheckpointError(
            f"{path}: not a SegFormer of NVlabs or mmsegmentation: none of its {len(weights)} tensors is "
            "called like patch_embed1.proj.weight or layers.0.0.projection.weight"
        )
    placed: dict[str, _Placed] = {}
    for name, found in targets.items():
        if not found:
            raise CheckpointError(f"{path}: {_explain_unknown(name)}")
        tensor, parts = _as_linear(weights[name], name), len(found)
        pieces = tensor.tensor_split(parts) if tensor.ndim and parts > 1 else [tensor] * parts
        for target, piece in zip(found, pieces, strict=True):
            if target in placed:
                raise CheckpointError(f"{path}: holds both {placed[target].source} and {name}")
            value = piece.float() if piece.is_floating_point() else piece
            placed[target] = _Placed(value.contiguous(), name, parts)
    return placed


def _own_names(name: str) -> list[str]:
    """Return the model's names of a tensor's parts; empty if it has none."""
    module, _, kind = name.replace("in_proj_", "in_proj.").rpartition(".")
    if module.startswith("decode_head."):
        own = _HEAD.get(module.removeprefix("decode_head."))
        return [f"decode_head.{own}.{kind}"] if own else []
    if match := re.fullmatch(r"(patch_embed|block|norm)([1-4])(.*)", module):
        part, stage, rest = match[1], int(match[2]) - 1, match[3]
    elif match := re.fullmatch(r"layers\.([0-3])\.([0-2])(.*)", module):
        part, stage, rest = ("patch_embed", "block", "norm")[int(match[2])], int(match[1]), match[3]
    else:
        return []
    if part != "block":
        return [f"segformer.stages.{stage}.{own}.{kind}" for own in _STAGE.get(part + rest, ())]
    _, block, rest = (*rest.split(".", 2), "", "")[:3]
    return [f"segformer.stages.{stage}.blocks.{block}.{own}.{kind}" for own in _BLOCK.get(rest, ())]


def _as_linear(tensor: Tensor, name: str) -> Tensor:
    """Return a 1 x 1 convolution of mmsegmentation's feed-forward network as the matrix that it is."""
    is_1x1 = re.search(r"\.ffn\.layers\.[04]\.weight$", name) and tensor.shape[2:] == (1, 1)
    return tensor[:, :, 0, 0] if is_1x1 else tensor


def _explain_unknown(name: str) -> str:
    if re.match(r"decode_head\.(convs|fusion_conv|conv_seg)\.", name):
        return (
            "its decode head is mmsegmentation's, with batch norm and ReLU after each stage's projection, "
            "which SegFormer's own lacks; convert the encoder with --encoder-only, and train a head"
        )
    if name.startswith("decode_head."):
        return f"{name} is of another decode head than SegFormer's; convert the encoder with --encoder-only"
    return f"{name} is no tensor of SegFormer"


def _recognise(placed: Mapping[str, _Placed], path: str | Path) -> tuple[str, dict[str, Any]]:
    """Return the size whose widths and depths the encoder has, and its number of bands."""
    first = [placed.get(f"segformer.stages.{stage}.patch_embeddings.proj.weight") for stage in range(4)]
    for stage, each in enumerate(first):
        if each is None or each.weights.ndim != 4:
            raise CheckpointError(f"{path}: lacks the patch embedding's convolution of stage {stage + 1}")
    widths = [each.weights.shape[0] for each in first if each]
    blocks = [re.match(r"segformer\.stages\.(\d)\.blocks\.(\d+)\.", name) for name in placed]
    depths = [max([int(b[2]) + 1 for b in blocks if b and b[1] == str(stage)] or [0]) for stage in range(4)]
    for size in _SIZES:
        known = CrissCrossSegformerConfig.mit(size)
        if (widths, depths) == (list(known.hidden_sizes), list(known.depths)):
            assert first[0] is not None
            return size, {"num_channels": first[0].weights.shape[1]}
    raise CheckpointError(f"{path}: widths {widths} and depths {depths} are not those of SegFormer B0 to B5")


def _head_values(placed: Mapping[str, _Placed], names: Sequence[str], path: str | Path) -> dict[str, Any]:
    """Return the decode head's width and the classes."""
    sizes = []
    for name in ("decode_head.linear_fuse.weight", "decode_head.classifier.weight"):
        if name not in placed or placed[name].weights.ndim != 4:
            raise CheckpointError(f"{path}: lacks the convolution for {name}")
        sizes.append(placed[name].weights.shape[0])
    width, count = sizes
    if names and len(names) != count:
        raise CheckpointError(f"{path}: {len(names)} class names for a model of {count} classes")
    id2label = dict(enumerate(names or [f"LABEL_{label}" for label in range(count)]))
    label2id = {name: label for label, name in id2label.items()}
    return {"decoder_hidden_size": width, "id2label": id2label, "label2id": label2id}


def _class_names(content: Any) -> list[str]:
    """Return the class names in the `meta` of mmsegmentation's files, old or new; empty if there are none."""
    meta = content.get("meta")
    for holder in (meta, meta.get("dataset_meta") if isinstance(meta, Mapping) else None):
        for key in ("CLASSES", "classes"):
            names = holder.get(key) if isinstance(holder, Mapping) else None
            if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
                return list(names)
    return []


def _check_shapes(
    placed: Mapping[str, _Placed], shapes: Mapping[str, tuple[int, ...]], model: str, path: str | Path
) -> None:
    """Check that the weights are those of the model, with the right shapes."""
    for name, shape in shapes.items():
        if name not in placed:
            raise CheckpointError(f"{path}: lacks the tensor for {name}")
        weights, source, parts = placed[name]
        if tuple(weights.shape) != shape:
            found = (weights.shape[0] * parts, *weights.shape[1:]) if parts > 1 else tuple(weights.shape)
            wanted = (shape[0] * parts, *shape[1:])
            raise CheckpointError(f"{path}: {source} has shape {found}, but {model} needs {wanted}")
    for name in placed:
        if name not in shapes:
            raise CheckpointError(f"{path}: holds {placed[name].source}, which {model} does not have")
