"""A traced model as ONNX."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


def to_onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Serialise a program that takes `pixel_values` (batch, bands, height, width) and gives `logits`.

    Args:
        program: its batch, height and width are dynamic; of PyTorch's own operators alone.
        metadata: goes into the file's metadata properties.

    Returns:
        A model in opset 20, the first with GELU, with its weights inside.
    """
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=20,
            input_names=["pixel_values"],
            output_names=["logits"],
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
