"""Where one pixel of an image looks in each stage, block and head of a model, as arrays to draw."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccsegformer.data.images import read_image
from ccsegformer.data.pixels import MINIMUM_SIDE
from ccsegformer.errors import DataError
from ccsegformer.labelling.labeller import MAX_MEGAPIXELS
from ccsegformer.labelling.preprocess import preprocessing_of
from ccsegformer.models import CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.attention import ATTENTIONS
from ccsegformer.models.attention_weights import (
    AttentionApplication,
    composed_weights,
    consecutive_crosses,
    cross_weights,
    position_of,
    record_attention,
    reduced_weights,
)
from ccsegformer.raster.read import Box, fill_gaps, has_georeference, is_no_photograph, open_raster, read_box


class AttentionPanel(NamedTuple):
    """Where one position looks in one application, or after two.

    Attributes:
        title: Which application, such as "block 2", or "blocks 1 and 2" for a composition.
        attention: "criss_cross" or "efficient".
        composed: Whether two applications are composed, see `composed_criss_cross_weights`.
        grid: Height and width of the stage's grid, whose cells cover the image evenly.
        position: Row and column (h, w) of the position on the grid.
        row, column: Weights (heads, W) and (heads, H), float32, of criss-cross attention; else None. The
            position's own weight is in the row, and 0 in the column.
        weights: Weights (heads, rows, columns), float32, of efficient attention's reduced grid or of a
            composition; else None.
        ratio: Positions on a side of a cell of `weights`: R of efficient attention, else 1.
    """

    title: str
    attention: str
    composed: bool
    grid: tuple[int, int]
    position: tuple[int, int]
    row: NDArray[np.float32] | None = None
    column: NDArray[np.float32] | None = None
    weights: NDArray[np.float32] | None = None
    ratio: int = 1

    @property
    def heads(self) -> int:
        """Number of heads."""
        arrays = self.row if self.row is not None else self.weights
        assert arrays is not None
        return len(arrays)


def read_whole_image(path: str | Path) -> Tensor:
    """Read an image or a raster whole: (bands, H, W), 8-bit RGB or the raster's bands, gaps filled.

    Raises:
        DataError: The file cannot be read, or has more than 36 megapixels.
    """
    if not (has_georeference(path) or is_no_photograph(path)):
        image = read_image(path)
        _check_megapixels(path, image.shape[1], image.shape[2])
        return image
    with open_raster(path) as source:
        _check_megapixels(path, source.height, source.width)
        values, valid = read_box(source, Box(0, 0, source.height, source.width))
    return torch.from_numpy(fill_gaps(values, valid))


def attend_image(
    model: CrissCrossSegformerForSemanticSegmentation, image: Tensor, name: str | Path = "image"
) -> list[AttentionApplication]:
    """Show a model an image at its own size, in one piece, and record every attention.

    Args:
        model: Model in evaluation mode, as `load_model` returns it.
        image: (bands, H, W), 8-bit RGB or the bands that the model was trained on.
        name: What messages call the image.

    Raises:
        DataError: The bands do not suit the model, or the image is smaller than 32 pixels or larger than 36
            megapixels.
        EngineError: As `record_attention`.
    """
    bands, height, width = image.shape
    preprocessing = preprocessing_of(model.config)
    preprocessing.check(bands, str(image.dtype).removeprefix("torch."), name)
    if min(height, width) < MINIMUM_SIDE:
        raise DataError(f"{name}: {width} x {height} pixels; each side must have at least {MINIMUM_SIDE}")
    _check_megapixels(name, height, width)
    return record_attention(model, preprocessing.apply(image.to(model.device))[None])


def panels_at(
    applications: Sequence[AttentionApplication],
    stage: int,
    pixel: tuple[int, int],
    size: tuple[int, int],
) -> list[AttentionPanel]:
    """Return where a pixel looks in one stage: each application, then each two in succession composed.

    Args:
        applications: What `attend_image` returned.
        stage: Index of the stage, from 0.
        pixel: Pixel (y, x), from 0.
        size: Height and width of the image.

    Raises:
        IndexError: The pixel is outside the image.
    """
    own = [each for each in applications if each.stage == stage]
    panels = []
    for each in own:
        position = position_of(pixel, size, each.grid)
        panel = AttentionPanel(_title(each, own), each.attention, False, each.grid, position)
        if each.attention == "criss_cross":
            row, column = cross_weights(each, position)
            panels.append(panel._replace(row=_array(row), column=_array(column)))
        else:
            panels.append(panel._replace(weights=_array(reduced_weights(each, position)), ratio=each.ratio))
    for first, second in consecutive_crosses(own):
        position = position_of(pixel, size, first.grid)
        panels.append(
            AttentionPanel(
                *(_pair_title(first, second, own), "criss_cross", True, first.grid, position),
                weights=_array(composed_weights(first, second, position)),
            )
        )
    return panels


def of_head(weights: NDArray[np.float32], head: int | None) -> NDArray[np.float32]:
    """Return the weights of one head, from 0, or the mean over heads for None."""
    chosen: NDArray[np.float32] = weights.mean(axis=0) if head is None else weights[head]
    return chosen


def peak_of(*weights: NDArray[np.float32]) -> float:
    """Return the weight that is drawn brightest: the largest, or 4 times a uniform weight if that is more."""
    count = sum(each.size for each in weights)
    return max(4 / count, *(float(each.max(initial=0)) for each in weights))


def attention_colors() -> dict[str, dict[str, str]]:
    """Return what `attention_view.js` needs of each attention."""
    return {name: {"label": of.label, "light": of.light, "dark": of.dark} for name, of in ATTENTIONS.items()}


def view_file(name: str) -> str:
    """Return the text of a script or style sheet of the view."""
    return (files("ccsegformer.report") / "templates" / name).read_text(encoding="utf-8")


def _title(application: AttentionApplication, own: list[AttentionApplication]) -> str:
    title = f"block {application.block + 1}"
    repeated = any(each.application for each in own)
    return f"{title}, application {application.application + 1}" if repeated else title


def _pair_title(
    first: AttentionApplication, second: AttentionApplication, own: list[AttentionApplication]
) -> str:
    if first.block != second.block and not any(each.application for each in own):
        return f"blocks {first.block + 1} and {second.block + 1}"
    if first.block == second.block:
        return f"{_title(first, own)} and {second.application + 1}"
    return f"{_title(first, own)}, and {_title(second, own)}"


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()


def _check_megapixels(name: str | Path, height: int, width: int) -> None:
    if height * width > MAX_MEGAPIXELS * 1_000_000:
        raise DataError(
            f"{name}: {width} x {height} is {height * width / 1e6:.1f} megapixels, and attention is shown "
            f"for up to {MAX_MEGAPIXELS}; cut a part out"
        )
