"""Labels at full resolution from logits at a lower one. A CPU never stores logits at full resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor

BAND_VALUES = 2**20  # resized logits held at a time on a CPU: 4 MiB, which stay in its cache
LARGE_BAND_VALUES = 2**26  # the same elsewhere, where a few large operations are faster than many
FEW = 0.3  # share of mixed pixels up to which it pays to resize them one by one


def upsampled_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    """Resize logits (1, K, h, w) bilinearly to (height, width), then take each pixel's best class.

    The same as `F.interpolate(..., mode="bilinear", align_corners=False).argmax(1)`, to rounding. On a CPU
    no tensor of K x height x width is stored, and only what has to be is resized: a pixel is a mean of four
    logits, so a class that is best in all four is best there.

    Returns:
        Labels (height, width) where the logits are: uint8, or int32 for more than 256 classes.
    """
    dtype = torch.uint8 if logits.shape[1] <= 256 else torch.int32
    if logits.device.type != "cpu":
        size = (height, width)
        return F.interpolate(logits.float(), size=size, mode="bilinear").argmax(1)[0].to(dtype)
    # Channels last puts a pixel's classes side by side, which makes argmax about four times faster.
    logits = logits.float().contiguous(memory_format=torch.channels_last)
    best = logits.permute(0, 2, 3, 1).argmax(-1)[0].to(dtype)
    (above, _, _), (left, _, _) = _between(height, best.shape[0]), _between(width, best.shape[1])
    labels = best[above][:, left]
    mixed = _differs_from_neighbours(best)[above][:, left]
    if mixed.float().mean() > FEW:
        rows = band_rows(logits, width)
        for first in range(0, height, rows):
            last = min(first + rows, height)
            labels[first:last] = resize_rows(logits, height, width, first, last).argmax(dim=-1)
        return labels
    for pixels in mixed.nonzero().split(max(1, BAND_VALUES // logits.shape[1])):
        rows, columns = pixels.unbind(1)
        labels[rows, columns] = _resize_pixels(logits, height, width, rows, columns).argmax(-1).to(dtype)
    return labels


def band_rows(logits: Tensor, width: int) -> int:
    """How many rows of logits (1, K, h, w) to resize at a time, where a row has `width` pixels."""
    values = BAND_VALUES if logits.device.type == "cpu" else LARGE_BAND_VALUES
    return max(1, values // (logits.shape[1] * width))


def resize_rows(logits: Tensor, height: int, width: int, first: int, last: int) -> Tensor:
    """Rows `first` to `last` (exclusive) of float32 logits (1, K, h, w) resized to (height, width).

    They come with the classes last, (rows, width, K). Equal to that slice of bilinear `F.interpolate` without
    aligned corners: the columns are resized first, then each row is a mean of the two rows it lies between.
    """
    above, below, weight = (each[first:last] for each in _between(height, logits.shape[2]))
    start, stop = int(above[0]), int(below[-1]) + 1
    wide = F.interpolate(
        logits[:, :, start:stop], size=(stop - start, width), mode="bilinear", align_corners=False
    )
    wide = wide[0].permute(1, 2, 0)  # (rows, width, K): picking rows copies whole blocks of memory
    above, below = (wide[index.to(logits.device) - start] for index in (above, below))
    return torch.lerp(above, below, weight[:, None, None].to(logits.device))


def _resize_pixels(logits: Tensor, height: int, width: int, rows: Tensor, columns: Tensor) -> Tensor:
    """Those pixels, (n, K), of logits resized to (height, width)."""
    _, classes, source_height, source_width = logits.shape
    flat = logits.permute(0, 2, 3, 1).reshape(-1, classes)
    above, below, down = (each[rows] for each in _between(height, source_height))
    left, right, across = (each[columns] for each in _between(width, source_width))
    upper, lower = (
        torch.lerp(flat[row * source_width + left], flat[row * source_width + right], across[:, None])
        for row in (above, below)
    )
    return torch.lerp(upper, lower, down[:, None])


def _between(size: int, source: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `size` places along a side: the two of `source` around it, and the weight of the second."""
    scale = torch.tensor(source, dtype=torch.float32) / size  # float32 as in PyTorch's own
    centers = ((torch.arange(size, dtype=torch.float32) + 0.5) * scale - 0.5).clamp(min=0)
    first = centers.long().clamp(max=source - 1)
    return first, (first + 1).clamp(max=source - 1), centers - first


def _differs_from_neighbours(best: Tensor) -> Tensor:
    """Whether a pixel's label differs from the one below, to the right, or between these."""
    (height, width) = best.shape
    below = best[torch.arange(1, height + 1).clamp(max=height - 1)]
    right = torch.arange(1, width + 1).clamp(max=width - 1)
    return (best != below) | (best != best[:, right]) | (best != below[:, right])
