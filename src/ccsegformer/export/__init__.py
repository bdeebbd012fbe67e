"""Export trained models to single files: ONNX or PyTorch's pt2."""

from ccsegformer.export._export import Format, describe, export, smallest_side

__all__ = ["Format", "describe", "export", "smallest_side"]
