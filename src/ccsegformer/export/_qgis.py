"""Export a trained model for the QGIS plugin Deepness and for geodeep, which run the same ONNX files.

Both cut a raster into square tiles, divide 8-bit values by 255, and take the class of the largest probability
from the file's output. They read the tile's size from the input's shape and all else from the metadata:
https://github.com/PUTvision/qgis-plugin-deepness (Apache 2.0) and https://github.com/uav4geo/GeoDeep (AGPL).
"""

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ccsegformer import __version__
from ccsegformer.data.labels import Classes
from ccsegformer.data.pixels import IMAGE_MEAN, IMAGE_STD
from ccsegformer.errors import ExportError
from ccsegformer.export._export import (
    LogitsModel,
    check_exportable,
    check_finite,
    compare_with_pytorch,
    plain,
    run_on,
    smallest_side,
)
from ccsegformer.files import write_atomically
from ccsegformer.labelling.windows import default_overlap
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

QGIS_TILE = 512  # pixels
MOST_CLASSES = 255  # Deepness keeps class + 1 in a byte


def export_for_qgis(
    model: CrissCrossSegformerForSemanticSegmentation,
    classes: Classes,
    path: str | Path,
    *,
    resolution: float,
    window: int | None = None,
    overlap: int | None = None,
    overwrite: bool = False,
) -> float | None:
    """Export a model to an ONNX file for Deepness and geodeep, after checking it against PyTorch.

    The file maps `image`, float32 (1, bands, window, window) in 0 to 1, to `probabilities`, float32
    (1, K, window, window). It contains the model's normalisation. Opset 18 and IR version 8 run in ONNX
    Runtime 1.15 and later; Deepness installs up to 1.17.0.

    Args:
        model: Model to export, of 8-bit images. geodeep takes models of three bands, red, green and blue.
        classes: One class for each channel of the output; two for a model of one label.
        path: File to write.
        resolution: Centimetres per pixel that the model expects; Deepness resamples to it.
        window: Side of a tile in pixels; by default 512.
        overlap: Overlap of neighbouring tiles in pixels, at most half a tile; by default that of
            `predict_scene`, 128, or a quarter of a tile below 512. It is stored in whole percent.
        overwrite: Replace an existing file.

    Returns:
        Largest difference from PyTorch's probabilities, as a share of the largest, over three images. None if
        ONNX Runtime is not installed.

    Raises:
        ExportError: The resolution, window or overlap is out of range; the model has too many classes or was
            not trained on 8-bit images; or the file disagrees with PyTorch. No file is written.
        MissingExtraError: onnx or onnxscript is not installed.
        OutputError: `path` exists and `overwrite` is not set, or `path` cannot be written.
    """
    path = Path(path)
    window = QGIS_TILE if window is None else window
    overlap = default_overlap(window) if overlap is None else overlap
    _check_tiles(resolution, window, overlap, smallest_side(model.config))
    _check_suits_plugins(path, model.config, len(classes))
    check_exportable(model, path, "onnx", overwrite)
    network = _TileModel(model)
    samples = run_on(network, _sample_tiles(model.config.num_channels, window))
    check_finite(path, samples)
    metadata = _qgis_metadata(classes, resolution, window, overlap)
    content = _older_onnx(network, samples[0][0], metadata)
    difference = compare_with_pytorch(path, content, "onnx", samples)
    write_atomically(path, content)
    return difference


class _TileModel(nn.Module):
    """Map what the plugins feed, 8-bit values divided by 255, to probabilities at the tile's size."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: CrissCrossSegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.logits = LogitsModel(model)
        means, stds = _statistics(model.config)
        self.register_buffer("mean", torch.tensor(means)[:, None, None])
        self.register_buffer("std", torch.tensor(stds)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        logits = self.logits((image - self.mean) / self.std)
        return interpolate(logits, size=image.shape[2:], mode="bilinear").softmax(1)


def _statistics(config: CrissCrossSegformerConfig) -> tuple[list[float], list[float]]:
    """Return the bands' means and standard deviations for values in 0 to 1."""
    if config.band_means is None or config.band_stds is None:
        return list(IMAGE_MEAN), list(IMAGE_STD)
    return [mean / 255 for mean in config.band_means], [std / 255 for std in config.band_stds]


def _qgis_metadata(classes: Classes, resolution: float, window: int, overlap: int) -> dict[str, str]:
    """Return the metadata that the plugins read, as JSON strings."""
    entries = {
        "model_type": "Segmentor",
        "class_names": {str(index): name for index, name in enumerate(classes.names)},
        "resolution": resolution,
        "tiles_size": window,
        "tiles_overlap": math.ceil(100 * overlap / window),
        "seg_thresh": 0,  # otherwise pixels whose best class has less than a half become class 0
        "seg_small_segment": 0,  # otherwise small regions are removed
        "ccsegformer_version": __version__,
    }
    return {name: json.dumps(value) for name, value in entries.items()}


def _sample_tiles(bands: int, window: int) -> list[Tensor]:
    """Return a tile of noise, one with an empty half, as beyond a scene's edge, and a black one."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, bands, window, window), generator=generator) / 255
    half = noise.flip(3)
    half[..., window // 2 :] = 0
    return [noise, half, torch.zeros_like(noise)]


def _older_onnx(network: nn.Module, image: Tensor, metadata: dict[str, str]) -> bytes:
    from ccsegformer.export._onnx import to_older_onnx

    return to_older_onnx(plain(torch.export.export(network, (image,))), metadata)


def _check_tiles(resolution: float, window: int, overlap: int, smallest: int) -> None:
    if not 0 < resolution < math.inf:
        raise ExportError(f"resolution {resolution:g}: must be centimetres per pixel, above 0")
    if window < smallest or not 0 <= overlap <= window // 2:
        raise ExportError(
            f"window {window}, overlap {overlap}: a window has at least {smallest} pixels a side, and an "
            "overlap at most half of them"
        )


def _check_suits_plugins(path: Path, config: CrissCrossSegformerConfig, count: int) -> None:
    if count > MOST_CLASSES:
        raise ExportError(f"{path}: not written: {count} classes; Deepness takes up to {MOST_CLASSES}")
    largest = max(config.band_means or [255])
    if not 1 < largest <= 255:
        raise ExportError(
            f"{path}: not written: the model's bands have means up to {largest:g}, but Deepness and geodeep "
            "feed 8-bit images; map these scenes with ccsegformer predict"
        )
