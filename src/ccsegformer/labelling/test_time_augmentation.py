"""Labels from one or many views of an image: resized, mirrored, through sliding windows.

As in mmsegmentation: overlapping windows average their logits, and views (scales and flips) their
probabilities at the original resolution. Logits go to the size of the network's input first and to the
original size from there; where the two are equal, once.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ccsegformer.config.protocol import EvaluationProtocol, ResizeSection, WindowSection
from ccsegformer.data.pixels import MINIMUM_SIDE, BandStatistics, normalize, pad_to
from ccsegformer.labelling.resize import band_rows, resize_rows, upsampled_argmax

Network = Callable[[torch.Tensor], torch.Tensor]  # float32 (1, bands, H, W) to logits (1, K, h, w)
Size = tuple[int, int]  # height, width


def label_views(
    network: Network,
    image: torch.Tensor,
    protocol: EvaluationProtocol,
    statistics: BandStatistics | None = None,
) -> torch.Tensor:
    """Label every pixel of an image (bands, H, W): 8-bit RGB, or what the `statistics` of its bands are of.

    Several views keep K x H x W float32 probabilities, and windows K logits for each pixel of the input.

    Returns:
        Labels (H, W): uint8, or int32 for more than 256 classes.
    """
    height, width = image.shape[1:]
    views = [
        (scale, flip) for scale in protocol.scales for flip in ([False, True] if protocol.flip else [False])
    ]
    if len(views) == 1:
        return upsampled_argmax(_view(network, image, protocol, statistics, *views[0]), height, width)
    total = None
    for scale, flip in views:
        logits = _view(network, image, protocol, statistics, scale, flip)
        if total is None:
            total = logits.new_zeros(height, width, logits.shape[1])
        rows = band_rows(logits, width)
        for first in range(0, height, rows):
            last = min(first + rows, height)
            total[first:last] += resize_rows(logits, height, width, first, last).softmax(dim=-1)
    assert total is not None, "a protocol has a scale"
    return total.argmax(dim=-1).to(torch.uint8 if total.shape[-1] <= 256 else torch.int32)


def input_sizes(height: int, width: int, resize: ResizeSection, scale: float = 1.0) -> tuple[Size, Size]:
    """The size of an image with its ratio kept, and that at which the network is given it."""
    factor = scale
    if resize.short_side is not None:
        factor = int(resize.short_side * scale) / min(height, width)
        if resize.long_side is not None:
            factor = min(factor, int(resize.long_side * scale) / max(height, width))
    kept = (max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5)))
    step = resize.multiple_of or 1
    return kept, (-(-kept[0] // step) * step, -(-kept[1] // step) * step)


def resize_image(image: torch.Tensor, size: Size) -> torch.Tensor:
    """Resize an image (bands, H, W), uint8 or float32, as OpenCV's bilinear does: not antialiased."""
    if image.shape[1:] == size:
        return image
    pixels = image.as_subclass(torch.Tensor)[None].float()
    resized = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)[0]
    return resized.round().to(torch.uint8) if image.dtype == torch.uint8 else resized


def slide(network: Network, pixels: torch.Tensor, window: WindowSection) -> torch.Tensor:
    """Logits (1, K, H, W) of normalised pixels (1, bands, H, W): the mean over a pixel's windows.

    A side that is smaller than the window is taken whole.
    """
    height, width = pixels.shape[2:]
    total = None
    count = pixels.new_zeros(height, width)
    for top, bottom in spans(height, window):
        for left, right in spans(width, window):
            logits = _at_input_size(network, pixels[:, :, top:bottom, left:right])
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], height, width)
            total[:, :, top:bottom, left:right] += logits
            count[top:bottom, left:right] += 1
    assert total is not None, "a side has a window"
    return total.div_(count)


def spans(length: int, window: WindowSection) -> list[tuple[int, int]]:
    """Where the windows along a side begin and end; the last one is moved back to end with the side."""
    size = min(window.size, length)
    steps = -(-(length - size) // window.stride)
    starts = [min(step * window.stride, length - size) for step in range(steps + 1)]
    return [(start, start + size) for start in starts]


def _view(
    network: Network,
    image: torch.Tensor,
    protocol: EvaluationProtocol,
    statistics: BandStatistics | None,
    scale: float,
    flip: bool,
) -> torch.Tensor:
    """Logits (1, K, h, w) of one view, the right way round, h x w being its size or a fraction of it."""
    height, width = image.shape[1:]
    for size in input_sizes(height, width, protocol.resize, scale):
        image = resize_image(image, size)
    pixels = normalize(image, statistics)[None]
    pixels = pixels.flip(-1) if flip else pixels
    if protocol.window is not None:
        logits = slide(network, pixels, protocol.window)
    elif pixels.shape[2:] == (height, width) and min(height, width) >= MINIMUM_SIDE:
        logits = network(pixels).float()  # resized to the original size band by band
    else:
        logits = _at_input_size(network, pixels)
    return logits.flip(-1) if flip else logits


def _at_input_size(network: Network, pixels: torch.Tensor) -> torch.Tensor:
    """Float32 logits (1, K, H, W) of pixels (1, bands, H, W); a side below 32 pixels is padded to that."""
    height, width = pixels.shape[2:]
    pixels = pad_to(pixels, MINIMUM_SIDE, MINIMUM_SIDE, 0)
    logits = network(pixels).float()
    logits = F.interpolate(logits, size=pixels.shape[2:], mode="bilinear", align_corners=False)
    return logits[:, :, :height, :width]
