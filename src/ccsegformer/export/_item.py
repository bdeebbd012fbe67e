"""Describe an exported file in a STAC item of the Machine Learning Model extension."""

import hashlib
import json
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccsegformer import __version__
from ccsegformer.data.labels import Classes
from ccsegformer.data.pixels import IMAGE_MEAN, IMAGE_STD
from ccsegformer.errors import optional_imports
from ccsegformer.export._export import Format, smallest_side
from ccsegformer.files import write_atomically
from ccsegformer.labelling.model_files import ENGINES
from ccsegformer.labelling.model_item import class_slugs
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

if TYPE_CHECKING:
    import pystac
    from stac_model.input import ModelInput
    from stac_model.output import ModelOutput
    from stac_model.schema import MLModelProperties

FRAMEWORKS = {"onnx": ("ONNX", "onnx", "onnx"), "pt2": ("PyTorch", "torch", "torch.export.save")}
"""Framework that runs a format, its package, and MLM's name of the artifact."""
WORLD = [-180.0, -90.0, 180.0, 90.0]
TASK = "semantic-segmentation"


def model_item_path(path: str | Path) -> Path:
    """Return where the item of an exported file lies: mine.json beside mine.onnx."""
    path = Path(path)
    return path.with_suffix(".json") if path.suffix in ENGINES else path.with_name(f"{path.name}.json")


def write_model_item(
    model: CrissCrossSegformerForSemanticSegmentation, classes: Classes, path: str | Path, format: Format
) -> Path:
    """Describe an exported file in a STAC item beside it, and return the item's path.

    The item depends on the file alone. Where and when a model may be used is not known, so the item is of the
    whole world from 1900 to 9999, as MLM's best practices advise for models without limits.

    Args:
        model: model that was exported.
        classes: its classes.
        path: exported file.
        format: its format.

    Raises:
        MissingExtraError: stac-model is not installed.
        OutputError: the item cannot be written.
    """
    output = model_item_path(path)
    with optional_imports(str(output)):
        import pystac
        from pystac.extensions.file import FileExtension
        from stac_model.schema import MLModelExtension
    item = pystac.Item(
        id=Path(path).stem,
        geometry={"type": "Polygon", "coordinates": [_world_ring(*WORLD)]},
        bbox=WORLD,
        datetime=None,
        start_datetime=datetime(1900, 1, 1, tzinfo=UTC),
        end_datetime=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
        properties={},
    )
    MLModelExtension.ext(item, add_if_missing=True).apply(_described_model(model, classes, path, format))
    asset = _model_asset(Path(path), band_names(model.config), format)
    item.add_asset("model", asset)
    content = Path(path).read_bytes()
    checksum = f"1220{hashlib.sha256(content).hexdigest()}"  # as a multihash
    FileExtension.ext(asset, add_if_missing=True).apply(checksum=checksum, size=len(content))
    text = json.dumps(item.to_dict(include_self_link=False), indent=2, ensure_ascii=False)
    write_atomically(output, text + "\n")
    return output


def band_names(config: CrissCrossSegformerConfig) -> list[str]:
    """Name a model's bands: colours, unless the model has its own statistics."""
    if config.scene_bands is not None:
        return [f"band_{number}" for number in config.scene_bands]
    if config.band_means is None and config.num_channels == 3:
        return ["red", "green", "blue"]
    return [f"band_{number}" for number in range(1, config.num_channels + 1)]


def _world_ring(west: float, south: float, east: float, north: float) -> list[list[float]]:
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def _model_asset(path: Path, bands: list[str], format: Format) -> "pystac.Asset":
    import pystac

    framework, _, artifact = FRAMEWORKS[format]
    return pystac.Asset(
        href=f"./{path.name}",
        media_type=f"application/octet-stream; application={framework.lower()}",
        roles=["mlm:model", "mlm:weights", "data"],
        extra_fields={"mlm:artifact_type": artifact, "bands": [{"name": name} for name in bands]},
    )


def _described_model(
    model: CrissCrossSegformerForSemanticSegmentation, classes: Classes, path: str | Path, format: Format
) -> "MLModelProperties":
    from stac_model.schema import MLModelProperties

    config = model.config
    framework, package, _ = FRAMEWORKS[format]
    name = re.sub(r"[^0-9A-Za-z_.-]+", "_", Path(path).stem).strip("_.-")
    properties: Any = {
        "name": name if re.match("[A-Za-z]..", name) else f"model_{name or 'exported'}",
        "architecture": "SegFormer",
        "framework": framework,
        "framework_version": version(package),
        "tasks": {TASK},
        "input": [_described_input(config)],
        "output": [_described_output(classes)],
        "total_parameters": sum(each.numel() for each in model.parameters()),
        "pretrained": None,
        "hyperparameters": {
            "attention": list(config.stage_attention),
            "recurrence": config.recurrence,
            "projection": config.projection,
            "ignore_index": classes.ignore_index,
            "smallest_side": smallest_side(config),
            "ccsegformer_version": __version__,
        },
    }
    return MLModelProperties(**properties)


def _described_input(config: CrissCrossSegformerConfig) -> "ModelInput":
    """Describe the input, with mean and standard deviation in stored units."""
    from stac_model.input import ModelInput

    means = config.band_means or [255 * mean for mean in IMAGE_MEAN]
    stds = config.band_stds or [255 * std for std in IMAGE_STD]
    about: Any = {
        "name": "pixel_values",
        "bands": band_names(config),
        "variables": None,
        "input": {
            "shape": [-1, config.num_channels, -1, -1],
            "dim_order": ["batch", "channel", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [
            {"type": "z-score", "mean": mean, "stddev": std} for mean, std in zip(means, stds, strict=True)
        ],
        "resize_type": None,
    }
    return ModelInput(**about)


def _described_output(classes: Classes) -> "ModelOutput":
    from stac_model.output import MLMClassification, ModelOutput

    slugs = [class_slugs(name, value) for value, name in enumerate(classes.names)]
    short = [slug for slug, _ in slugs]
    described = [
        MLMClassification(
            value=value,
            name=unique if short.count(slug) > 1 else slug,
            description=name,
            color_hint="{:02X}{:02X}{:02X}".format(*color),
        )
        for value, ((slug, unique), name, color) in enumerate(
            zip(slugs, classes.names, classes.palette, strict=True)
        )
    ]
    about: Any = {
        "name": "logits",
        "bands": None,
        "variables": None,
        "tasks": {TASK},
        "result": {
            "shape": [-1, len(classes), -1, -1],
            "dim_order": ["batch", "class", "height", "width"],
            "data_type": "float32",
        },
        "classes": described,
    }
    return ModelOutput(**about)
