"""Build an OpenVINO graph of our SegFormer for one input shape, directly instead of by tracing or export.

Every module is checked when it is read: an adapter, a quantised layer or a hook raises `NotPlain`. Tokens
have rank 3, (batch, N, C): at rank 4 OpenVINO would keep a convolution's memory layout and reorder later, at
a cost. Import this module only where it is needed, because it imports OpenVINO.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op
import torch
from openvino import Node
from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.models.segformer.modeling_segformer import (
    SegformerDropPath,
    SegformerOverlapPatchEmbeddings,
)

from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation, CrissCrossSegformerModel
from ccsegformer.models.attention.ccnet import CCNetAttention
from ccsegformer.models.attention.criss_cross import CrissCrossAttention, LePE
from ccsegformer.models.attention.efficient import EfficientSelfAttention, SequenceReduction
from ccsegformer.models.decode_head import FoldedDecodeHead, is_plain
from ccsegformer.models.layer import CrissCrossSegformerLayer, DepthWiseConv, MixFFN
from ccsegformer.models.modeling_ccsegformer import CrissCrossSegformerStage
from ccsegformer.ops.explicit import LANDMARKS

GridSize = Sequence[int]  # (height, width) in tokens

PLAIN_3X3 = ((3, 3), (1, 1), (1, 1), (1, 1))  # kernel, stride, padding and dilation
MAP_CHUNK_VALUES = 2**20
"""Values of a wide map computed at a time. Larger chunks leave the cache and take more memory and time."""
MOST_CHUNKS, CHUNK_VALUES_PER_WEIGHT = 32, 8
"""Limits for the chunks of a map, since each is compiled separately and has its own copy of the weights."""
SMALLEST_SHARE = 1e-30  # of the landmarks in a softmax, far above where float32 underflows


class NotPlain(Exception):
    """A module differs from what the graph is written for; the message says how."""

    def __init__(self, module: nn.Module, what: str) -> None:
        super().__init__(what)
        self.module = module


def build(model: Any, shape: tuple[int, ...]) -> ov.Model:
    """Build the graph of a model in evaluation mode.

    Args:
        model: Model of any size with any of this package's attentions. Its weights are copied as float32.
        shape: Shape (batch, bands, H, W) of `pixel_values`.

    Returns:
        Graph from float32 `pixel_values` to float32 `logits` (batch, K, ceil(H / 4), ceil(W / 4)).

    Raises:
        NotPlain: The model has another class, or a module in it was replaced, wrapped or hooked.
    """
    take(model, CrissCrossSegformerForSemanticSegmentation)
    take(model.segformer, CrissCrossSegformerModel)
    pixels = op.parameter(shape, np.float32, name="pixel_values")
    image, maps = pixels, []
    for stage in take(model.segformer.stages, nn.ModuleList):
        image = _stage(image, take(stage, CrissCrossSegformerStage))
        maps.append(image)
    return ov.Model([_head(maps, take(model.decode_head, FoldedDecodeHead))], [pixels], "ccsegformer")


def take(module: Any, *kinds: type[nn.Module]) -> Any:
    """Return the module if it has exactly one of these classes and no hooks; otherwise raise `NotPlain`."""
    if not any(is_plain(module, kind) for kind in kinds):
        is_other = type(module) not in kinds
        what = f"is a {type(module).__name__}" if is_other else "has hooks, or a forward of its own"
        raise NotPlain(module, what)
    return module


def _stage(image: Node, stage: CrissCrossSegformerStage) -> Node:
    """Map (batch, C_in, H, W) to (batch, C, height, width)."""
    patches = take(stage.patch_embeddings, SegformerOverlapPatchEmbeddings)
    image = _convolution(image, take(patches.proj, nn.Conv2d))
    size = _shape(image)[2:]
    tokens = _layer_norm(_tokens(image), patches.layer_norm)
    for block in take(stage.blocks, nn.ModuleList):
        tokens = _block(tokens, size, take(block, CrissCrossSegformerLayer))
    return _image(_layer_norm(tokens, stage.layer_norm), size)


def _block(tokens: Node, size: GridSize, block: CrissCrossSegformerLayer) -> Node:
    for dropped in (block.drop_path, block.hidden_dropout):
        take(dropped, nn.Identity, nn.Dropout, SegformerDropPath)
    if block.has_attention:
        normed = _layer_norm(tokens, block.layernorm_before)
        attention = take(block.attention, CrissCrossAttention, CCNetAttention, EfficientSelfAttention)
        if isinstance(attention, EfficientSelfAttention):
            added = _efficient(normed, size, attention)
        else:
            apply = _criss_cross if isinstance(attention, CrissCrossAttention) else _ccnet
            added = apply(normed, size, attention)
            for _ in range(attention.recurrence - 1):
                added = op.add(added, apply(op.add(normed, added), size, attention))
        tokens = op.add(added, tokens)
    normed = _layer_norm(tokens, block.layernorm_after)
    return op.add(_mix_ffn(normed, size, take(block.mlp, MixFFN)), tokens)


def _mix_ffn(tokens: Node, size: GridSize, mlp: MixFFN) -> Node:
    """Build a Mix-FFN in chunks of rows, each with one more row above and below, to keep wide maps small."""
    take(mlp.dropout, nn.Dropout, nn.Identity)
    take(mlp.activation_fn, GELUActivation, nn.GELU)
    convolution = take(take(mlp.dwconv, DepthWiseConv).dwconv, nn.Conv2d)
    plain = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
    height, width = size
    parts = []
    weights = mlp.fc1.weight.numel() + mlp.fc2.weight.numel()
    chunks = _row_chunks(size, mlp.fc1.out_features, weights) if plain == PLAIN_3X3 else [(0, height)]
    for first, last in chunks:
        above, below = min(first, 1), min(height - last, 1)
        rows = _rows(tokens, width, first - above, last + below)
        wide = _image(_linear(rows, mlp.fc1), (last - first + above + below, width))
        wide = op.gelu(_convolution(wide, convolution, (above, below)), "erf")
        parts.append(_linear(_tokens(wide), mlp.fc2))
    return _concatenate(parts, 1)


def _efficient(tokens: Node, size: GridSize, attention: EfficientSelfAttention) -> Node:
    """Attend to keys and values at a reduced resolution, which OpenVINO computes as flash attention."""
    source = tokens
    if attention.sequence_reduction_ratio > 1:
        reduction = take(attention.sequence_reduction, SequenceReduction)
        reduced = _convolution(_image(tokens, size), take(reduction.sequence_reduction, nn.Conv2d))
        source = _layer_norm(_tokens(reduced), reduction.layer_norm)

    def by_head(tokens: Node, projection: nn.Linear) -> Node:
        batch, count, _ = _shape(tokens)
        shape = (batch, count, attention.num_attention_heads, attention.head_dim)
        return _transpose(_reshape(_linear(tokens, projection), shape), (0, 2, 1, 3))

    query = by_head(tokens, attention.q_proj)
    key, value = by_head(source, attention.k_proj), by_head(source, attention.v_proj)
    attended = op.scaled_dot_product_attention(query, key, value, scale=_scalar(attention.scaling))
    return _linear(_reshape(_transpose(attended, (0, 2, 1, 3)), _shape(tokens)), attention.o_proj)


def _criss_cross(tokens: Node, size: GridSize, attention: CrissCrossAttention) -> Node:
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    heads = attention.num_heads
    head_dim = take(attention.q_proj, nn.Linear).out_features // heads
    attended, value = _attend_cross(tokens, size, projections, heads, head_dim**-0.5)
    if attention.lepe is not None:
        lepe = _convolution(_image(value, size), take(attention.lepe, LePE))
        attended = op.add(attended, _tokens(lepe))
    return _linear(attended, attention.o_proj)


def _ccnet(tokens: Node, size: GridSize, attention: CCNetAttention) -> Node:
    attended, _ = _attend_cross(tokens, size, (attention.query, attention.key, attention.value), 1, 1.0)
    return op.multiply(attended, _constant(attention.gamma))


def _attend_cross(
    tokens: Node, size: GridSize, projections: Sequence[nn.Linear], heads: int, scale: float
) -> tuple[Node, Node]:
    """Return criss-cross attention (batch, N, C) and the values.

    Attention along rows and attention along columns are merged by their log-sum-exps as in `ops.flash`. The
    columns are projected from the transposed grid, which is cheaper than transposing three maps.
    """
    (batch, _, channels), (height, width) = _shape(tokens), size
    grid = _reshape(tokens, (batch, height, width, channels))
    query, key, value = (_linear(grid, projection) for projection in projections)
    query = op.multiply(query, _scalar(scale))
    turned = _transpose(grid, (0, 2, 1, 3))
    columns = [_linear(turned, projection) for projection in projections]
    columns[0] = op.multiply(columns[0], _scalar(scale))
    row_out, row_lse = _attend_along((query, key, value), heads)
    column_out, column_lse = (_transpose(each, (0, 2, 1, 3, 4)) for each in _attend_along(columns, heads))
    by_head = [_reshape(each, (batch, height, width, heads, -1)) for each in (query, key)]
    # Not the rows' values: OpenVINO would multiply them in place, before LePE reads them.
    own_value = _reshape(_transpose(columns[2], (0, 2, 1, 3)), (batch, height, width, heads, -1))
    self_score = op.reduce_sum(op.multiply(by_head[0], by_head[1]), _axes(-1), keep_dims=True)
    peak = op.maximum(row_lse, column_lse)
    row_weight, column_weight, self_weight = (
        op.exp(op.subtract(each, peak)) for each in (row_lse, column_lse, self_score)
    )
    total = op.subtract(op.add(row_weight, column_weight), self_weight)
    both = op.add(op.multiply(row_out, row_weight), op.multiply(column_out, column_weight))
    merged = op.divide(op.subtract(both, op.multiply(own_value, self_weight)), total)
    flat = (batch, height * width, -1)
    return _reshape(merged, flat), _reshape(value, flat)


def _attend_along(tensors: Sequence[Node], heads: int) -> tuple[Node, Node]:
    """Attend along the third dimension, and compute the log-sum-exp of the scores.

    OpenVINO fuses products and softmax into one kernel that neither stores scores nor returns a log-sum-exp.
    So the values get an extra channel, which is 1 at a few keys, the landmarks. Its output is the landmarks'
    share of the softmax, and their own log-sum-exp minus the logarithm of this share is that of all keys. A
    share too small to be exact becomes 0 and its logarithm infinite, so that the output is NaN and not wrong.

    Args:
        tensors: Scaled queries, keys and values, each (batch, lines, length, C).
        heads: Number of attention heads.

    Returns:
        The output (batch, lines, length, heads, value_dim) and log-sum-exp (batch, lines, length, heads, 1).
    """
    batch, lines, length, channels = _shape(tensors[2])
    sequences = batch * lines * heads

    def split(tensor: Node) -> Node:
        if heads == 1:
            return _reshape(tensor, (sequences, length, -1))
        by_head = _reshape(tensor, (batch * lines, length, heads, -1))
        return _reshape(_transpose(by_head, (0, 2, 1, 3)), (sequences, length, -1))

    query, key, value = map(split, tensors)
    step = max(length // LANDMARKS, 1)
    is_landmark = (np.arange(length) % step == 0).astype(np.float32)
    indicator = np.broadcast_to(is_landmark[:, None], (sequences, length, 1))
    value = op.concat([value, op.constant(np.ascontiguousarray(indicator))], axis=2)
    weights = op.softmax(op.matmul(query, key, False, True), axis=-1)
    value_dim = channels // heads
    found = op.variadic_split(
        op.matmul(weights, value, False, False), _scalar(2, np.int64), _axes(value_dim, 1)
    )
    landmarks = op.gather(key, _axes(*range(0, length, step)), _scalar(1, np.int64))
    scores = op.matmul(query, landmarks, False, True)
    share = op.select(op.greater(found.output(1), _scalar(SMALLEST_SHARE)), found.output(1), _scalar(0.0))
    highest = op.reduce_max(scores, _axes(-1), keep_dims=True)
    total = op.reduce_sum(op.exp(op.subtract(scores, highest)), _axes(-1), keep_dims=True)
    lse = op.add(highest, op.log(op.divide(total, share)))

    def join(tensor: Node | ov.Output) -> Node:
        if heads == 1:
            return _reshape(tensor, (batch, lines, length, 1, -1))
        by_head = _reshape(tensor, (batch, lines, heads, length, -1))
        return _transpose(by_head, (0, 1, 3, 2, 4))

    return join(found.output(0)), join(lse)


def _head(maps: Sequence[Node], head: FoldedDecodeHead) -> Node:
    """Map the features of all stages (batch, C, h, w), finest first, to logits (batch, K, height, width)."""
    folded = head.fold()
    if folded is None:
        raise NotPlain(head, "has a projection, fuse or norm that was replaced, wrapped or hooked")
    matrices, bias = folded
    take(head.dropout, nn.Dropout, nn.Identity)
    take(head.activation, nn.ReLU)
    classifier = take(head.classifier, nn.Conv2d)
    (height, width), coarsest = _shape(maps[0])[2:], _shape(maps[-1])[2]
    products = [
        _product(_tokens(image), matrix) for image, matrix in zip(maps[1:], matrices[1:], strict=True)
    ]
    chunks, parts = [(0, height)], []
    if all(height % _shape(image)[2] == 0 for image in maps) and classifier.kernel_size == (1, 1):
        weights = matrices[0].numel() + classifier.weight.numel()
        chunks = _row_chunks((height, width), len(matrices[0]), weights, height // coarsest)
    for first, last in chunks:
        rows = _rows(_tokens(maps[0]), width, first, last)
        hidden = op.add(
            _image(_product(rows, matrices[0]), (last - first, width)), _constant(bias[:, None, None])
        )
        for image, product in zip(maps[1:], products, strict=True):
            hidden = op.add(hidden, _resized(product, _shape(image)[2:], (height, width), first, last))
        # ReLU written as (x + |x|) / 2: OpenVINO's own returns 0 for NaN and would hide it.
        active = op.multiply(op.add(hidden, op.absolute(hidden)), _scalar(0.5))
        parts.append(_convolution(active, classifier))
    return _concatenate(parts, 2)


def _resized(tokens: Node, size: GridSize, target: GridSize, first: int, last: int) -> Node:
    """Resize tokens from `size` to `target` bilinearly, and return the rows `first` to `last`.

    A part of the rows is resized together with one source row on either side. For this, the target's height
    must be a multiple of the source's.
    """
    factor = target[0] // size[0]
    is_part = last - first < target[0]
    above = max(first // factor - 1, 0) if is_part else 0
    below = min(last // factor + 1, size[0]) if is_part else size[0]
    image = _image(_rows(tokens, size[1], above, below), (below - above, size[1]))
    height = (below - above) * factor if is_part else target[0]
    resized = op.interpolate(
        image,
        _axes(height, target[1]),
        mode="linear_onnx",
        shape_calculation_mode="sizes",
        coordinate_transformation_mode="half_pixel",
        axes=_axes(2, 3),
    )
    if not is_part:
        return resized
    start = above * factor
    return op.slice(resized, _axes(first - start), _axes(last - start), _axes(1), _axes(2))


def _row_chunks(size: GridSize, channels: int, weights: int, step: int = 1) -> list[tuple[int, int]]:
    """Cut a map into chunks of rows, given as (first, last) with `last` exclusive.

    Args:
        size, channels: Height and width, and number of channels, of the map.
        weights: Number of weights; each chunk has its own copy.
        step: Number that must divide the rows of a chunk.
    """
    height, width = size
    values = height * width * channels
    most = max(min(MOST_CHUNKS, values // (CHUNK_VALUES_PER_WEIGHT * weights)), 1)
    rows = max(MAP_CHUNK_VALUES // (width * channels * step), -(-height // (most * step)), 1) * step
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]


def _rows(tokens: Node, width: int, first: int, last: int) -> Node:
    """Return the tokens of the rows `first` to `last` of a map."""
    if last - first == _shape(tokens)[1] // width:
        return tokens
    return op.slice(tokens, _axes(first * width), _axes(last * width), _axes(1), _axes(1))


def _concatenate(parts: Sequence[Node], axis: int) -> Node:
    return parts[0] if len(parts) == 1 else op.concat(parts, axis=axis)


def _linear(tokens: Node, layer: nn.Linear) -> Node:
    take(layer, nn.Linear)
    product = _product(tokens, layer.weight)
    return product if layer.bias is None else op.add(product, _constant(layer.bias))


def _product(tokens: Node, weight: Tensor) -> Node:
    return op.matmul(tokens, _constant(weight), False, True)


def _convolution(image: Node, layer: nn.Conv2d, margins: tuple[int, int] = (0, 0)) -> Node:
    """Convolve a map, or a chunk of its rows with `margins` rows above and below in place of padding."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise NotPlain(layer, f"has padding {layer.padding!r} in mode {layer.padding_mode!r}")
    (vertical, horizontal), (above, below) = layer.padding, margins
    options = {
        "strides": list(layer.stride),
        "pads_begin": [vertical - above, horizontal],
        "pads_end": [vertical - below, horizontal],
        "dilations": list(layer.dilation),
    }
    weight = layer.weight
    if layer.groups == 1:
        convolved = op.convolution(image, _constant(weight), **options)
    else:
        grouped = weight.unflatten(0, (layer.groups, -1))
        convolved = op.group_convolution(image, _constant(grouped), **options)
    return convolved if layer.bias is None else op.add(convolved, _constant(layer.bias[:, None, None]))


def _layer_norm(tokens: Node, norm: nn.LayerNorm) -> Node:
    take(norm, nn.LayerNorm)
    normed = op.mvn(tokens, _axes(-1), True, norm.eps, "inside_sqrt")
    if norm.weight is not None:
        normed = op.multiply(normed, _constant(norm.weight))
    return normed if norm.bias is None else op.add(normed, _constant(norm.bias))


def _image(tokens: Node, size: GridSize) -> Node:
    """Reshape (batch, N, C) to (batch, C, height, width)."""
    batch, _, channels = _shape(tokens)
    return _transpose(_reshape(tokens, (batch, *size, channels)), (0, 3, 1, 2))


def _tokens(image: Node) -> Node:
    """Reshape (batch, C, height, width) to (batch, N, C)."""
    batch, channels, height, width = _shape(image)
    return _reshape(_transpose(image, (0, 2, 3, 1)), (batch, height * width, channels))


def _transpose(tensor: Node, order: Sequence[int]) -> Node:
    return op.transpose(tensor, _axes(*order))


def _reshape(tensor: Node | ov.Output, shape: Sequence[int]) -> Node:
    return op.reshape(tensor, _axes(*shape), special_zero=False)


def _shape(tensor: Node) -> tuple[int, ...]:
    return tuple(tensor.output(0).shape)


def _constant(weight: Tensor) -> Node:
    return op.constant(weight.detach().to("cpu", torch.float32).contiguous().numpy())


def _scalar(value: float, dtype: type = np.float32) -> Node:
    return op.constant(np.array(value, dtype))


def _axes(*values: int) -> Node:
    return op.constant(np.array(values, np.int64))
