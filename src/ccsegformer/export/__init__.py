"""Export trained models to single files: ONNX or PyTorch's pt2."""

from ccsegformer.export._export import Format, describe, export, smallest_side
from ccsegformer.export._item import model_item_path, write_model_item
from ccsegformer.export._qgis import export_for_qgis

__all__ = [
    "Format",
    "describe",
    "export",
    "export_for_qgis",
    "model_item_path",
    "smallest_side",
    "write_model_item",
]
