"""Labels at full resolution from logits at a lower one, without storing logits at full resolution."""

import torch
import torch.nn.functional as F

BAND_VALUES = 2**20  # resized logits held at a time: 4 MiB, which stay in a processor's cache


def upsampled_argmax(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize logits (1, K, h, w) bilinearly to (height, width), then take each pixel's best class.

    The same as `F.interpolate(..., mode="bilinear", align_corners=False).argmax(1)`, to rounding, but a band
    of rows at a time, so that no tensor of K x height x width is stored.

    Returns:
        Labels (height, width) where the logits are: uint8, or int32 for more than 256 classes.
    """
    num_classes = logits.shape[1]
    # Channels last puts a pixel's classes side by side, which makes argmax about four times faster on CPU.
    logits = logits.float().contiguous(memory_format=torch.channels_last)
    dtype = torch.uint8 if num_classes <= 256 else torch.int32
    labels = torch.empty(height, width, dtype=dtype, device=logits.device)
    rows = max(1, BAND_VALUES // (num_classes * width))
    for first in range(0, height, rows):
        last = min(first + rows, height)
        labels[first:last] = resize_rows(logits, height, width, first, last).argmax(dim=-1)
    return labels


def resize_rows(logits: torch.Tensor, height: int, width: int, first: int, last: int) -> torch.Tensor:
    """Rows `first` to `last` (exclusive) of float32 logits (1, K, h, w) resized to (height, width).

    They come with the classes last, (rows, width, K). Equal to that slice of bilinear `F.interpolate` without
    aligned corners: the columns are resized first, then each row is a mean of the two rows it lies between.
    """
    source_height = logits.shape[2]
    scale = torch.tensor(source_height, dtype=torch.float32) / height  # float32 as in PyTorch's own
    centers = ((torch.arange(first, last, dtype=torch.float32) + 0.5) * scale - 0.5).clamp(min=0)
    above = centers.long().clamp(max=source_height - 1)
    below = (above + 1).clamp(max=source_height - 1)
    weight = (centers - above)[:, None, None].to(logits.device)
    start, stop = int(above[0]), int(below[-1]) + 1
    wide = F.interpolate(
        logits[:, :, start:stop], size=(stop - start, width), mode="bilinear", align_corners=False
    )
    wide = wide[0].permute(1, 2, 0)  # (rows, width, K): picking rows copies whole blocks of memory
    above, below = (wide[index.to(logits.device) - start] for index in (above, below))
    return torch.lerp(above, below, weight)
