"""A traced model as ONNX. Imports onnxscript, which is optional: imported where it is needed."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op  # the exporter translates into 18, then converts to what is asked for
from onnxscript.values import Opset


@script(Opset("ccsegformer", 1), default_opset=op)
def flash_criss_cross(query: FLOAT[...], key: FLOAT[...], value: FLOAT[...], scale: float) -> FLOAT[...]:
    """`ops.flash` in ONNX's own operators: (batch, heads, height, width, head_dim) to the same.

    ONNX has no attention that gives its log-sum-exp, so `Scan` goes through the rows one at a time, then
    through the columns: no more than one row's scores, (batch, heads, width, width), are stored.
    """

    @graph()
    def attend(q, k, v):  # type: ignore[no-untyped-def]
        scores = op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2]))
        highest = op.ReduceMax(scores, [-1])
        weights = op.Exp(scores - highest)
        norm = op.ReduceSum(weights, [-1])
        return op.MatMul(weights, v) / norm, highest + op.Log(norm)

    scaled = query * op.Constant(value_float=scale)
    row_out, row_lse = op.Scan(
        scaled,
        key,
        value,
        body=attend,
        num_scan_inputs=3,
        scan_input_axes=[2, 2, 2],
        scan_output_axes=[2, 2],
    )
    column_out, column_lse = op.Scan(
        scaled,
        key,
        value,
        body=attend,
        num_scan_inputs=3,
        scan_input_axes=[3, 3, 3],
        scan_output_axes=[3, 3],
    )
    # Both passes hold the position itself, so its term is taken away once, as in ops.flash.
    self_score = op.ReduceSum(scaled * key, [-1])
    peak = op.Max(row_lse, column_lse)
    row_weight = op.Exp(row_lse - peak)
    column_weight = op.Exp(column_lse - peak)
    self_weight = op.Exp(self_score - peak)
    total = row_weight + column_weight - self_weight
    return (
        row_out * (row_weight / total) + column_out * (column_weight / total) - value * (self_weight / total)
    )


def to_onnx(
    program: torch.export.ExportedProgram, metadata: Mapping[str, str], criss_cross: Any = flash_criss_cross
) -> bytes:
    """Serialise a program that takes `pixel_values` (batch, 3, height, width) and gives `logits`.

    Args:
        program: its batch, height and width are dynamic.
        metadata: goes into the file's metadata properties.
        criss_cross: the onnxscript function that stands for `ccsegformer::flash_criss_cross`.

    Returns:
        A model in opset 20 with its weights inside.
    """

    def translate(query: Any, key: Any, value: Any, scale: float) -> tuple[Any]:
        return (criss_cross(query, key, value, scale=scale),)  # inference never asks for the log-sum-exp

    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=20,
            input_names=["pixel_values"],
            output_names=["logits"],
            custom_translation_table={torch.ops.ccsegformer.flash_criss_cross.default: translate},
            verbose=False,
        )
    assert exported is not None
    batch, _, height, width = exported.model.graph.inputs[0].shape
    exported.rename_axes({batch: "batch", height: "height", width: "width"})
    exported.model.metadata_props.update(metadata)
    return exported.model_proto.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxscript's optimizer to itself: it warns of a constant that it leaves to the runtime to fold."""
    logger = logging.getLogger("onnxscript.optimizer")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
