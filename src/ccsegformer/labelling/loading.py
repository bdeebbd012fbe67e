"""Open trained models, and engines that run them, with their classes."""

from pathlib import Path

import torch

from ccsegformer.data.labels import Classes, read_classes
from ccsegformer.errors import DataError
from ccsegformer.labelling.engine import Engine, EngineName, Precision, open_engine, open_exported
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation, load_trained


def load_model(
    name_or_path: str | Path, *, device: str | torch.device | None = None
) -> tuple[CrissCrossSegformerForSemanticSegmentation, Classes]:
    """Load a trained model for inference, with its classes.

    `name_or_path` is a folder or a hub name. The classes are those of `classes.json` in the folder, else the
    configuration's labels in the default colours. `device` is CUDA where there is a GPU, else the CPU.

    Raises:
        CheckpointError: not a SegFormer, or one with parts that were never trained, such as an encoder alone.
        DataError: `classes.json` is wrong, or does not have one class for each of the model's.
    """
    model = load_trained(str(name_or_path))
    listing = Path(name_or_path) / "classes.json"
    names = tuple(model.config.id2label[index] for index in range(model.config.num_labels))
    ignore_index = max(model.config.semantic_loss_ignore_index, len(names))
    classes = read_classes(listing) if listing.is_file() else Classes(names, ignore_index=ignore_index)
    if len(classes) != len(names):
        raise DataError(f"{listing}: {len(classes)} classes for a model of {len(names)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device), classes


def load_engine(
    name_or_path: str | Path,
    engine: EngineName | None = None,
    precision: Precision | None = None,
    *,
    device: str | torch.device | None = None,
) -> tuple[Engine, Classes]:
    """An engine with the classes that it labels: of an ONNX file by `ccsegformer export`, or of a model.

    Arguments and errors are those of `open_exported`, or of `load_model` and `open_engine`.
    """
    if Path(name_or_path).suffix == ".onnx":
        opened, found = open_exported(name_or_path)
        palette = tuple((red, green, blue) for red, green, blue in found["palette"])
        classes = Classes(tuple(found["class_names"]), palette, found["ignore_index"])
        return open_engine(opened, engine, precision), classes
    model, classes = load_model(name_or_path, device=device)
    return open_engine(model, engine, precision), classes
