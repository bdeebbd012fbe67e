"""Labels and scores at full resolution from logits at a lower one, without storing all logits resized."""

import copy
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ccsegformer.models.resizing import Line, place_line
from ccsegformer.raster.read import Box

CHUNK_VALUES = 2**20  # resized logits held at a time on a CPU: 4 MiB, which stay in its cache
LARGE_CHUNK_VALUES = 2**26  # elsewhere, where a few large operations are faster than many
FEW = 0.3  # share of mixed pixels up to which it pays to resize them one by one


def upsampled_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    """Resize logits (1, K, h, w) bilinearly to (height, width), then take each pixel's best class.

    The same as `F.interpolate(..., mode="bilinear", align_corners=False).argmax(1)`, to rounding; on a CPU
    without storing the resized logits.

    Returns:
        Labels (height, width) on the device of the logits: uint8, or int32 for more than 256 classes.
    """
    if logits.device.type != "cpu":
        best = F.interpolate(logits.float(), size=(height, width), mode="bilinear").argmax(1)[0]
        return best.to(label_dtype(logits.shape[1]))
    return Resized(logits, height, width).labels(Box(0, 0, height, width))


def label_dtype(num_classes: int) -> torch.dtype:
    """Return the dtype of labels: uint8, or int32 for more than 256 classes."""
    return torch.uint8 if num_classes <= 256 else torch.int32


class Resized:
    """Logits (1, K, h, w) as if resized bilinearly to (height, width), computed where they are asked for.

    Equal to `F.interpolate(..., mode="bilinear", align_corners=False)`, to rounding.
    """

    def __init__(self, logits: Tensor, height: int, width: int) -> None:
        # A pixel's classes side by side make gathering and argmax about four times faster.
        self.logits = logits[0].float().permute(1, 2, 0).contiguous()
        source_height, source_width = logits.shape[2:]
        self.rows, self.columns = (
            Line(*(each.to(logits.device) for each in place_line(source, target)))
            for source, target in ((source_height, height), (source_width, width))
        )

    def box(self, box: Box) -> Tensor:
        """Return the logits (rows, columns, K) of a box: columns are resized first, then rows."""
        above, below, down = (each[box.top : box.bottom] for each in self.rows)
        left, right, across = (each[box.left : box.right] for each in self.columns)
        start, stop = int(above[0]), int(below[-1]) + 1
        source = self.logits[start:stop]
        wide = torch.lerp(source[:, left], source[:, right], across[None, :, None])
        return torch.lerp(wide[above - start], wide[below - start], down[:, None, None])

    @cached_property
    def best(self) -> Tensor:
        """Best classes (h, w) before resizing."""
        return self.logits.argmax(-1).to(label_dtype(self.logits.shape[-1]))

    def labels(self, box: Box) -> Tensor:
        """Return the best classes (rows, columns) of a box.

        A resized pixel is a weighted mean of four logits, so a class that is best in all four is best there.
        Only the other pixels are resized; if they are many, all pixels, a few rows at a time.
        """
        best = self.best
        above, left = self.rows.first[box.top : box.bottom], self.columns.first[box.left : box.right]
        mixed = _differs_from_neighbours(best)[above][:, left]
        if mixed.float().mean() > FEW:
            return torch.cat([self.box(chunk).argmax(-1).to(best.dtype) for chunk in self.chunks(box)])
        labels = best[above][:, left]
        for pixels in mixed.nonzero().split(max(1, CHUNK_VALUES // self.logits.shape[-1])):
            down, across = pixels.unbind(1)
            labels[down, across] = self.pixels(down + box.top, across + box.left).argmax(-1).to(best.dtype)
        return labels

    def chunks(self, box: Box) -> list[Box]:
        """Cut a box into strips of rows whose resized logits stay in a CPU's cache."""
        values = CHUNK_VALUES if self.logits.device.type == "cpu" else LARGE_CHUNK_VALUES
        rows = max(1, values // (self.logits.shape[-1] * max(1, box.width)))
        tops = range(box.top, box.bottom, rows)
        return [box._replace(top=top, bottom=min(top + rows, box.bottom)) for top in tops]

    def below(self, row: int) -> "Resized":
        """Return what the rows from `row` on need; earlier rows must not be asked for."""
        start = int(self.rows.first[row])
        first, second, weight = self.rows
        part = copy.copy(self)
        vars(part).pop("best", None)
        part.logits, part.rows = self.logits[start:], Line(first - start, second - start, weight)
        return part

    def pixels(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the logits (n, K) of single pixels."""
        _, width, classes = self.logits.shape
        flat = self.logits.view(-1, classes)
        above, below, down = (each[rows] for each in self.rows)
        left, right, across = (each[columns] for each in self.columns)
        upper, lower = (
            torch.lerp(flat[row * width + left], flat[row * width + right], across[:, None])
            for row in (above, below)
        )
        return torch.lerp(upper, lower, down[:, None])


def _differs_from_neighbours(best: Tensor) -> Tensor:
    """Find labels (h, w) that differ from the one below, to the right, or between these."""
    height, width = best.shape
    below = best[torch.arange(1, height + 1).clamp(max=height - 1)]
    right = torch.arange(1, width + 1).clamp(max=width - 1)
    return (best != below) | (best != best[:, right]) | (best != below[:, right])
