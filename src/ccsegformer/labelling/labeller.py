"""Label one image, whole or by the windows and views of a protocol."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ccsegformer.config.protocol import DEFAULT, EvaluationProtocol
from ccsegformer.data.pixels import BandStatistics
from ccsegformer.errors import DataError
from ccsegformer.labelling.engine import Engine, open_engine
from ccsegformer.labelling.test_time_augmentation import input_sizes, label_views

MAX_MEGAPIXELS = 36  # of an image as the network is given it


@torch.inference_mode()
def predict_labels(
    model: nn.Module | Engine,
    image: torch.Tensor,
    protocol: EvaluationProtocol = DEFAULT,
    *,
    name: str = "image",
) -> torch.Tensor:
    """Label every pixel of an image, in evaluation mode and on the model's device.

    The image is (bands, H, W), 8-bit RGB or of the bands that the model was trained on. By default the whole
    image goes through the network once and its logits are resized to H x W, where the best class is taken.
    A side below 32 pixels is padded to that.

    A model is run by PyTorch as it is now, in the protocol's precision. For many images on a CPU give
    `open_engine(model)` instead, which is compiled once for each size.

    Returns:
        Labels (H, W) on the CPU: uint8, or int32 for more than 256 classes.

    Raises:
        EngineError: the logits are not finite, or an engine is not of the protocol's precision.
        DataError: an image of other bands than the model takes, or of more than 36 megapixels after any
            resizing; the message calls it `name`.
    """
    engine = open_engine(model, model.name if isinstance(model, Engine) else "torch", protocol.precision)
    bands, height, width = image.shape
    statistics = input_statistics(engine.config, bands, str(image.dtype).removeprefix("torch."), name)
    _, (rows, columns) = input_sizes(height, width, protocol.resize, max(protocol.scales))
    if rows * columns > MAX_MEGAPIXELS * 1_000_000:
        resized = "" if (rows, columns) == (height, width) else f" resized to {columns}x{rows}"
        raise DataError(
            f"{name}: {width}x{height}{resized} is {rows * columns / 1_000_000:.1f} megapixels, and an image "
            f"in one piece may have {MAX_MEGAPIXELS}; cut it into smaller ones"
        )

    def network(pixels: torch.Tensor) -> torch.Tensor:
        return engine(pixels, image=name)

    return label_views(network, image.to(engine.device), protocol, statistics).cpu()


def input_statistics(config: Any, bands: int, dtype: str, name: str | Path) -> BandStatistics | None:
    """What `normalize` takes for an image of so many bands and such values; None for 8-bit RGB.

    `config` is the model's.

    Raises:
        DataError: the model takes other images; the message calls this one `name`.
    """
    wanted = getattr(config, "num_channels", bands)
    if bands != wanted:
        raise DataError(f"{name}: {bands} {'band' if bands == 1 else 'bands'} for a model of {wanted}")
    means = getattr(config, "band_means", None)
    if means is not None:
        return BandStatistics(tuple(means), tuple(config.band_stds))
    if dtype != "uint8":
        raise DataError(f"{name}: values of more than 8 bits for a model of 8-bit colours")
    if bands != 3:
        raise DataError(f"{name}: {bands} bands for a model that has no statistics of them")
    return None
