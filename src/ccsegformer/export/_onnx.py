"""Convert a traced model to ONNX."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def to_onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Convert a program to a serialised ONNX model in opset 20, the first that has GELU.

    Args:
        program: Program that maps `pixel_values` (batch, bands, height, width) to `logits`, with dynamic
            batch, height and width, and only PyTorch's own operators.
        metadata: Entries for the file's metadata properties.
    """
    exported = _converted(program, 20, "pixel_values", "logits")
    batch, _, height, width = exported.model.graph.inputs[0].shape
    exported.rename_axes({batch: "batch", height: "height", width: "width"})
    exported.model.metadata_props.update(metadata)
    return exported.model_proto.SerializeToString()


def to_older_onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Convert a program to a serialised ONNX model that ONNX Runtime 1.15 runs: opset 18, IR version 8.

    Args:
        program: Program that maps `image` (1, bands, height, width) to `probabilities`, with fixed sizes, and
            only PyTorch's own operators.
        metadata: Entries for the file's metadata properties.
    """
    exported = _converted(program, 18, "image", "probabilities")
    exported.model.ir_version = 8
    exported.model.metadata_props.update(metadata)
    return exported.model_proto.SerializeToString()


def _converted(program: torch.export.ExportedProgram, opset: int, image: str, output: str) -> Any:
    with quiet_onnxscript():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[image],
            output_names=[output],
            verbose=False,
        )
    assert exported is not None
    return exported


@contextmanager
def quiet_onnxscript() -> Iterator[None]:
    """Hide onnxscript's warnings about large constants that it does not fold; runtimes fold them."""
    logger = logging.getLogger("onnxscript.optimizer")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
