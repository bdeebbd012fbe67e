"""Open trained models by name or path, with their classes: ours, transformers' own, and model files."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PretrainedConfig

from ccsegformer.data.labels import Classes, check_class_order, classes_of_model, read_classes
from ccsegformer.data.pixels import IMAGE_MEAN, IMAGE_STD, BandStatistics
from ccsegformer.errors import CheckpointError, DataError
from ccsegformer.labelling.engine import ANY_SIZE, Engine, EngineName, Precision, Segmenter, open_engine
from ccsegformer.labelling.example import model_location
from ccsegformer.labelling.model_files import is_model_file, open_model_file
from ccsegformer.labelling.model_item import (
    band_names_of,
    classes_of_item,
    is_model_item,
    model_file_of,
    preprocessing_of_item,
    read_model_item,
)
from ccsegformer.labelling.preprocess import Preprocessing
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation, load_trained
from ccsegformer.models.one_label import class_count


def load_model(
    name_or_path: str | Path, *, device: str | torch.device | None = None
) -> tuple[CrissCrossSegformerForSemanticSegmentation, Classes]:
    """Load a trained SegFormer for inference, with its classes.

    Args:
        name_or_path: folder, name on the Hugging Face hub, or "example", the small model that ships.
        device: by default CUDA if there is a GPU, else the CPU.

    Returns:
        The model in evaluation mode, with the normalisation of its image processor in `config.band_means` and
        `band_stds` if that is not ImageNet's; and the classes of `classes.json` in the folder, else those of
        the configuration in default colours.

    Raises:
        CheckpointError: not a SegFormer, or one with parts that were never trained, such as an encoder alone.
        DataError: `classes.json` is wrong, or does not have one class for each of the model's.
    """
    name_or_path = model_location(name_or_path)
    model = _load_segformer(name_or_path, device)
    return model, _classes(name_or_path, model.config)


def _load_segformer(name_or_path: str | Path, device: str | torch.device | None) -> Any:
    """Load a SegFormer in evaluation mode, with the normalisation of its image processor."""
    model = load_trained(str(name_or_path))
    config = model.config
    if config.band_means is None and config.num_channels == 3:
        with suppress(OSError):  # many folders have no image processor: ImageNet's statistics, then
            processor = AutoImageProcessor.from_pretrained(str(name_or_path))
            if own := _preprocessing_of(processor, name_or_path).statistics:
                config.band_means, config.band_stds = list(own.means), list(own.stds)
    return model.to(_device(device))


def load_engine(
    name_or_path: str | Path,
    engine: EngineName | None = None,
    precision: Precision | None = None,
    *,
    classes: Classes | None = None,
    preprocessing: Preprocessing | None = None,
    device: str | torch.device | None = None,
) -> tuple[Engine, Classes]:
    """Open the engine for a trained model, with its classes.

    Args:
        name_or_path: folder or name on the hub, of a SegFormer or of another of transformers' models for
            semantic segmentation (safetensors only), whose image processor says how images are normalised; or
            an .onnx, .xml or .pt2 file, see `open_model_file`; or the STAC item of one, NAME.json, whose
            bands, normalisation and classes are taken; or "example", the small model that ships.
        engine, precision: see `open_engine`.
        classes: by default those that the model names.
        preprocessing: by default what the model says.
        device: by default CUDA if there is a GPU, else the CPU; model files run on the CPU.

    Raises:
        CheckpointError: the model cannot be loaded, or is not a trained model for semantic segmentation.
        DataError: the classes are unknown, wrong, or not one for each of the model's.
        EngineError: the engine cannot run the model.
    """
    name_or_path = model_location(name_or_path)
    if is_model_item(name_or_path):
        return _open_item(name_or_path, engine, precision, classes, preprocessing)
    opened, found = _open_model(name_or_path, engine, precision, classes, device)
    return (opened if preprocessing is None else opened.with_preprocessing(preprocessing)), found


def _open_model(
    name_or_path: str | Path,
    engine: EngineName | None,
    precision: Precision | None,
    classes: Classes | None,
    device: str | torch.device | None,
) -> tuple[Engine, Classes]:
    """Open a model that is no item."""
    if is_model_file(name_or_path):
        opened, named = open_model_file(name_or_path, engine, precision)
        return _with_classes(opened, classes, named, name_or_path)
    saved = _saved_config(name_or_path)
    if saved.get("model_type") in (None, *ANY_SIZE):
        model = _load_segformer(name_or_path, device)
        named = _classes_beside(classes, name_or_path, model.config)
        opened = open_engine(model, engine, precision)
        if saved.get("band_means") is None:  # an image processor's statistics are of 8-bit colours
            opened = opened.with_preprocessing(opened.preprocessing._replace(only_8_bit=True))
        return _with_classes(opened, classes, named, name_or_path)
    foreign, preprocessing = _load_foreign(str(name_or_path))
    opened = open_engine(foreign.to(_device(device)), engine, precision)
    opened = opened.with_preprocessing(preprocessing)
    named = _classes_beside(classes, name_or_path, foreign.config)
    return _with_classes(opened, classes, named, name_or_path)


def _open_item(
    path: str | Path,
    engine: EngineName | None,
    precision: Precision | None,
    classes: Classes | None,
    preprocessing: Preprocessing | None,
) -> tuple[Engine, Classes]:
    """Open the model file of an item, as the item says."""
    item = read_model_item(path)
    names = band_names_of(item, path)
    opened, own = open_model_file(model_file_of(item, path), engine, precision)
    if preprocessing is None:
        preprocessing = preprocessing_of_item(item, path, opened.preprocessing.channels)
    opened = replace(opened.with_preprocessing(preprocessing), band_names=names)
    named = own
    try:
        named = classes_of_item(item, path, own.ignore_index if own else None) or own
    except DataError:
        if classes is None:
            raise
    return _with_classes(opened, classes, named, path)


def open_segmenter(
    model: Segmenter | Engine | str | Path,
    classes: Classes | None = None,
    engine: EngineName | None = None,
    precision: Precision | None = None,
    preprocessing: Preprocessing | None = None,
) -> tuple[Engine, Classes]:
    """Open the engine for a model, given by name or as an object, with its classes.

    Raises:
        DataError, CheckpointError, EngineError: as `load_engine`.
    """
    if isinstance(model, str | Path):
        return load_engine(model, engine, precision, classes=classes, preprocessing=preprocessing)
    opened, name = open_engine(model, engine, precision), type(model).__name__
    if preprocessing is not None:
        opened = opened.with_preprocessing(preprocessing)
    config = opened.config if isinstance(model, Engine) else getattr(model, "config", None)
    named = _classes_beside(classes, "", config) if hasattr(config, "id2label") else None
    return _with_classes(opened, classes, named, name)


def _device(device: str | torch.device | None) -> str | torch.device:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _classes(name_or_path: str | Path, config: Any) -> Classes:
    """Read `classes.json` in a model's folder, or take the names in its configuration."""
    listing = Path(name_or_path) / "classes.json"
    if str(name_or_path) and listing.is_file():
        classes = read_classes(listing)
        if len(classes) != (count := class_count(config.num_labels)):
            raise DataError(f"{listing}: {len(classes)} classes for a model of {count}")
        return classes
    ignored = getattr(config, "semantic_loss_ignore_index", 255)
    return classes_of_model(config.id2label, ignored, name_or_path or type(config).__name__)


def _classes_beside(given: Classes | None, name_or_path: str | Path, config: Any) -> Classes | None:
    """Return the model's own classes; None if they are wrong but others are given."""
    try:
        return _classes(name_or_path, config)
    except DataError:
        if given is None:
            raise
        return None


def _with_classes(
    engine: Engine, given: Classes | None, named: Classes | None, name: str | Path
) -> tuple[Engine, Classes]:
    """Take the given classes, else those that the model names; the engine will check its logits by them."""
    if given is not None and named is not None:
        check_class_order(named.names, given.names, str(name), "the classes given")
    classes = given or named
    if classes is None:
        raise DataError(f"{name}: does not name its classes: give them in a classes.json (--classes)")
    if engine.num_labels not in (None, len(classes)):
        raise DataError(f"{name}: {len(classes)} classes for a model of {engine.num_labels}")
    return replace(engine, num_labels=len(classes)), classes


def _saved_config(name_or_path: str | Path) -> dict[str, Any]:
    """Read the configuration of a model in a folder or on the hub; empty if there is none."""
    try:
        config: dict[str, Any] = PretrainedConfig.get_config_dict(str(name_or_path))[0]
    except (OSError, ValueError):
        return {}
    return config


def _load_foreign(path: str) -> tuple[nn.Module, Preprocessing]:
    """Load another of transformers' models for semantic segmentation, and how it wants its images."""
    try:
        model, about = AutoModelForSemanticSegmentation.from_pretrained(
            path, use_safetensors=True, output_loading_info=True
        )
        if about["missing_keys"]:
            raise ValueError(f"weights are missing, such as {min(about['missing_keys'])}")
        processor = AutoImageProcessor.from_pretrained(path)
    except (OSError, ValueError, ImportError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: cannot be loaded for semantic segmentation: {reason}") from error
    return model.eval(), _preprocessing_of(processor, path)


def _preprocessing_of(processor: Any, path: str | Path) -> Preprocessing:
    """Convert an image processor's normalisation: (values * factor - mean) / std."""
    if getattr(processor, "do_flip_channel_order", False):
        raise CheckpointError(f"{path}: expects blue, green, red; wrap it in a module that flips the bands")
    factor = processor.rescale_factor if processor.do_rescale else 1
    mean, std = (0.0,) * 3, (1.0,) * 3
    if processor.do_normalize:
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    if (mean, std) == (IMAGE_MEAN, IMAGE_STD) and abs(factor * 255 - 1) < 1e-6:
        return Preprocessing()
    statistics = BandStatistics(tuple(m / factor for m in mean), tuple(s / factor for s in std))
    return Preprocessing(len(mean), statistics)
