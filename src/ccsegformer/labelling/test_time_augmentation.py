"""Label an image from one or many views of it: resized, mirrored, through sliding windows.

As in mmsegmentation: overlapping windows average their logits, and views (scales and flips) their
probabilities at the original resolution. Logits are resized to the size of the network's input first, and
from there to the original size; once if the two are equal.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from ccsegformer.config.protocol import EvaluationProtocol, ResizeSection, WindowSection
from ccsegformer.data.pixels import pad_to
from ccsegformer.labelling.engine import Engine
from ccsegformer.labelling.resize import Resized, label_dtype, upsampled_argmax
from ccsegformer.raster.read import Box


def label_views(
    engine: Engine, image: torch.Tensor, protocol: EvaluationProtocol, name: str | Path = "image"
) -> torch.Tensor:
    """Label every pixel of an image (bands, H, W) on the engine's device; messages call it `name`.

    Several views keep K x H x W float32 probabilities, and windows K logits for each pixel of the input.

    Returns:
        Labels (H, W): uint8, or int32 for more than 256 classes.
    """
    height, width = image.shape[1:]
    views = [
        (scale, flip) for scale in protocol.scales for flip in ([False, True] if protocol.flip else [False])
    ]
    if len(views) == 1:
        return upsampled_argmax(_view(engine, image, protocol, name, *views[0]), height, width)
    total = None
    for scale, flip in views:
        logits = _view(engine, image, protocol, name, scale, flip)
        if total is None:
            total = logits.new_zeros(height, width, logits.shape[1])
        resized = Resized(logits, height, width)
        for rows in resized.chunks(Box(0, 0, height, width)):
            total[rows.top : rows.bottom] += resized.box(rows).softmax(dim=-1)
    assert total is not None, "a protocol has a scale"
    return total.argmax(dim=-1).to(label_dtype(total.shape[-1]))


def input_sizes(
    height: int, width: int, resize: ResizeSection, scale: float = 1.0
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the resized height and width with the ratio kept, and those that the network is given."""
    factor = scale
    if resize.short_side is not None:
        factor = int(resize.short_side * scale) / min(height, width)
        if resize.long_side is not None:
            factor = min(factor, int(resize.long_side * scale) / max(height, width))
    kept = (max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5)))
    step = resize.multiple_of or 1
    return kept, (-(-kept[0] // step) * step, -(-kept[1] // step) * step)


def resize_image(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize an image (bands, H, W), uint8 or float32, as OpenCV's bilinear does: without antialiasing."""
    if image.shape[1:] == size:
        return image
    pixels = image.as_subclass(torch.Tensor)[None].float()
    resized = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)[0]
    return resized.round().to(torch.uint8) if image.dtype == torch.uint8 else resized


def slide(
    engine: Engine, pixels: torch.Tensor, window: WindowSection, name: str | Path = "image"
) -> torch.Tensor:
    """Return logits (1, K, H, W) of normalised pixels (1, bands, H, W): each pixel's mean over its windows.

    A side that is smaller than the window is taken whole.
    """
    height, width = pixels.shape[2:]
    total = None
    count = torch.zeros(height, width)
    for top, bottom in sliding_windows(height, window):
        for left, right in sliding_windows(width, window):
            logits = _at_input_size(engine, pixels[:, :, top:bottom, left:right], name)
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], height, width)
                count = count.to(logits.device)
            total[:, :, top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
    assert total is not None, "a side has a window"
    return total.div_(count)


def sliding_windows(length: int, window: WindowSection) -> list[tuple[int, int]]:
    """Return where the windows along a side begin and end; the last one is moved back into the side."""
    size = min(window.size, length)
    steps = -(-(length - size) // window.stride)
    starts = [min(step * window.stride, length - size) for step in range(steps + 1)]
    return [(start, start + size) for start in starts]


def _view(
    engine: Engine,
    image: torch.Tensor,
    protocol: EvaluationProtocol,
    name: str | Path,
    scale: float,
    flip: bool,
) -> torch.Tensor:
    """Return the logits (1, K, h, w) of one view, mirrored back if it was flipped, at its size or lower."""
    height, width = image.shape[1:]
    for size in input_sizes(height, width, protocol.resize, scale):
        image = resize_image(image, size)
    pixels = engine.preprocessing.apply(image)[None]
    pixels = pixels.flip(-1) if flip else pixels
    shown = (pixels.shape[2], pixels.shape[3])
    if protocol.window is not None:
        logits = slide(engine, pixels, protocol.window, name)
    elif shown == (height, width) == engine.input_size(*shown):
        logits = engine(pixels, image=name)  # the caller resizes them to the original size
    else:
        logits = _at_input_size(engine, pixels, name)
    return logits.flip(-1) if flip else logits


def _at_input_size(engine: Engine, pixels: torch.Tensor, name: str | Path) -> torch.Tensor:
    """Return logits (1, K, H, W) of pixels (1, bands, H, W), which are padded to a size the engine takes."""
    height, width = pixels.shape[2:]
    size = engine.input_size(height, width)
    logits = engine(pad_to(pixels, *size, 0), image=name)
    logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits[:, :, :height, :width]
