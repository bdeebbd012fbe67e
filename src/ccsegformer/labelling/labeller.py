"""Label one image as an evaluation protocol shows it to the network: by default whole, at its own size."""

import torch

from ccsegformer.config.protocol import DEFAULT, EvaluationProtocol
from ccsegformer.errors import DataError
from ccsegformer.labelling.engine import Engine, Segmenter, open_engine
from ccsegformer.labelling.test_time_augmentation import input_sizes, label_views

MAX_MEGAPIXELS = 36
"""Largest image, after resizing, that is labelled in one piece."""


@torch.inference_mode()
def predict_labels(
    model: Segmenter | Engine,
    image: torch.Tensor,
    protocol: EvaluationProtocol = DEFAULT,
    *,
    name: str = "image",
) -> torch.Tensor:
    """Label every pixel of an image, in evaluation mode and on the model's device.

    By default the whole image goes through the network once; its logits are resized to H x W, and the best
    class of each pixel is taken. Sides below 32 pixels are padded.

    Args:
        model: any segmenter, see `open_engine`; PyTorch runs it in the protocol's precision. To label many
            images on a CPU, pass `open_engine(model)` instead, which is compiled once for each size.
        image: (bands, H, W), 8-bit RGB or the bands that the model was trained on.
        protocol: how the image is shown to the network.
        name: what messages call the image.

    Returns:
        Labels (H, W) on the CPU: uint8, or int32 for more than 256 classes.

    Raises:
        EngineError: the logits are not finite, or the engine has another precision than the protocol.
        DataError: the image's bands do not suit the model, or it has more than 36 megapixels after any
            resizing.
    """
    engine = open_engine(model, model.name if isinstance(model, Engine) else "torch", protocol.precision)
    bands, height, width = image.shape
    engine.preprocessing.check(bands, str(image.dtype).removeprefix("torch."), name)
    _, (rows, columns) = input_sizes(height, width, protocol.resize, max(protocol.scales))
    if rows * columns > MAX_MEGAPIXELS * 1_000_000:
        resized = "" if (rows, columns) == (height, width) else f" resized to {columns}x{rows}"
        raise DataError(
            f"{name}: {width}x{height}{resized} is {rows * columns / 1_000_000:.1f} megapixels, and an image "
            f"in one piece may have {MAX_MEGAPIXELS}; cut it into smaller ones"
        )
    return label_views(engine, image.to(engine.device), protocol, name).cpu()
