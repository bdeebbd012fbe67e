"""Where the positions of an image look: attention weights from a model's own queries and keys."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ccsegformer.errors import EngineError
from ccsegformer.models.attention.ccnet import CCNetAttention
from ccsegformer.models.attention.criss_cross import CrissCrossAttention
from ccsegformer.models.attention.efficient import EfficientSelfAttention
from ccsegformer.models.modeling_ccsegformer import CrissCrossSegformerForSemanticSegmentation
from ccsegformer.ops import composed_criss_cross_weights, criss_cross_weights


class AttentionApplication(NamedTuple):
    """One application of a block's attention to one image.

    Attributes:
        stage, block, application: Indices from 0. A block applies criss-cross attention `recurrence` times,
            and efficient attention once.
        attention: "criss_cross" or "efficient".
        query: Tensor (heads, H, W, head_dim) on the stage's grid, in the model's dtype.
        key: Tensor (heads, H, W, head_dim); with efficient attention (heads, H // R, W // R, head_dim).
        scale: Factor of the scores.
        ratio: R, the sequence reduction of efficient attention; 1 for criss-cross attention.
    """

    stage: int
    block: int
    application: int
    attention: str
    query: Tensor
    key: Tensor
    scale: float
    ratio: int

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the stage's grid."""
        return self.query.shape[1], self.query.shape[2]


@torch.no_grad()
def record_attention(
    model: CrissCrossSegformerForSemanticSegmentation, pixel_values: Tensor
) -> list[AttentionApplication]:
    """Run a model's encoder on one image, and keep the queries and keys of every attention.

    Args:
        model: Model in evaluation mode.
        pixel_values: Normalised image (1, num_channels, H, W).

    Returns:
        All applications, in the order of computation; blocks without attention have none. Memory is that of
        the queries and keys, O(N C) for each block of N positions and C channels.

    Raises:
        ValueError: There is more than one image, or the model is in training mode.
        EngineError: A block has an attention that is not one of this package's.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[0] != 1:
        raise ValueError(f"pixel_values must be (1, channels, H, W), not {tuple(pixel_values.shape)}")
    if model.training:
        raise ValueError("the model is in training mode: call model.eval()")
    applications: list[AttentionApplication] = []
    stages: Any = model.segformer.stages
    with ExitStack() as hooks:
        for stage_index, stage in enumerate(stages):
            for block_index, block in enumerate(stage.blocks):
                if block.has_attention:
                    _observe(block.attention, stage_index, block_index, applications, hooks)
        model.segformer(pixel_values)
    return applications


def position_of(pixel: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Return the position (h, w) of a grid whose cell contains a pixel (y, x) of an image of `size` (H, W).

    The cells cover the image evenly, as when the decode head resizes the grid to the image.

    Raises:
        IndexError: The pixel is outside the image.
    """
    if not all(0 <= at < length for at, length in zip(pixel, size, strict=True)):
        raise IndexError(f"pixel y={pixel[0]}, x={pixel[1]} is outside the image of {size[1]} x {size[0]}")
    (y, x), (height, width) = pixel, size
    return y * grid[0] // height, x * grid[1] // width


def cross_weights(application: AttentionApplication, position: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the weights of one position's row (heads, W) and column (heads, H), as `criss_cross_weights`.

    In float32, or float64 for a float64 model.

    Raises:
        ValueError: The application is not of criss-cross attention.
        IndexError: The position is outside the grid.
    """
    query, key = _queries_and_keys(application, "criss_cross")
    row, column = criss_cross_weights(query, key, position, scale=application.scale)
    return row[0], column[0]


def reduced_weights(application: AttentionApplication, position: tuple[int, int]) -> Tensor:
    """Return the weights of one position on efficient attention's reduced grid: (heads, H // R, W // R).

    Each cell stands for R x R positions. Rows and columns beyond a multiple of R are in no cell. The weights
    of each head sum to 1. In float32, or float64 for a float64 model.

    Raises:
        ValueError: The application is not of efficient attention.
        IndexError: The position is outside the grid.
    """
    query, key = _queries_and_keys(application, "efficient")
    (height, width), (h, w) = application.grid, position
    if not (0 <= h < height and 0 <= w < width):
        raise IndexError(f"position {position} is outside the {height} x {width} grid")
    scores = torch.einsum("nd,nyxd->nyx", query[0, :, h, w] * application.scale, key[0])
    return scores.flatten(1).softmax(dim=-1).view_as(scores)


def composed_weights(
    first: AttentionApplication, second: AttentionApplication, position: tuple[int, int]
) -> Tensor:
    """Return one position's weights on all positions after two applications: (heads, H, W).

    See `composed_criss_cross_weights` for what is composed.

    Raises:
        ValueError: An application is not of criss-cross attention, or they have different grids.
        IndexError: The position is outside the grid.
    """
    if first.stage != second.stage:
        raise ValueError(f"stages {first.stage} and {second.stage} have different grids")
    before, after = (_queries_and_keys(each, "criss_cross") for each in (first, second))
    return composed_criss_cross_weights(before, after, position, scale=second.scale)[0]


def consecutive_crosses(
    applications: list[AttentionApplication],
) -> Iterator[tuple[AttentionApplication, AttentionApplication]]:
    """Yield each pair of criss-cross applications that follow one another in the same stage."""
    for first, second in pairwise(applications):
        if first.stage == second.stage and first.attention == second.attention == "criss_cross":
            yield first, second


def _queries_and_keys(application: AttentionApplication, attention: str) -> tuple[Tensor, Tensor]:
    if application.attention != attention:
        raise ValueError(f"the application is of {application.attention} attention, not {attention}")
    query, key = application.query[None], application.key[None]
    return (query, key) if query.dtype == torch.float64 else (query.float(), key.float())


def _observe(
    attention: nn.Module,
    stage: int,
    block: int,
    applications: list[AttentionApplication],
    hooks: ExitStack,
) -> None:
    """Record an attention's queries and keys, for as long as `hooks` is open."""
    name, heads, ratio, query_projection, key_projection = _projections(attention, stage)
    grids: list[tuple[int, int]] = []
    queries: list[Tensor] = []
    applied = count()

    def start(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        grids.append((arguments[1], arguments[2]))

    def keep_query(_: nn.Module, __: Any, output: Tensor) -> None:
        queries.append(output)

    def keep_key(_: nn.Module, __: Any, output: Tensor) -> None:
        height, width = grids[-1]
        query = _as_grid(queries.pop(), height, width, heads)
        key = _as_grid(output, height // ratio, width // ratio, heads)
        scale = 1.0 if isinstance(attention, CCNetAttention) else query.shape[-1] ** -0.5
        applications.append(AttentionApplication(stage, block, next(applied), name, query, key, scale, ratio))

    for handle in (
        attention.register_forward_pre_hook(start),
        query_projection.register_forward_hook(keep_query),
        key_projection.register_forward_hook(keep_key),
    ):
        hooks.callback(handle.remove)


def _as_grid(tokens: Tensor, height: int, width: int, heads: int) -> Tensor:
    """Reshape tokens (1, height * width, C) to (heads, height, width, C / heads)."""
    return tokens[0].unflatten(0, (height, width)).unflatten(-1, (heads, -1)).permute(2, 0, 1, 3)


def _projections(attention: nn.Module, stage: int) -> tuple[str, int, int, nn.Module, nn.Module]:
    """Return an attention's name, heads, sequence reduction, and its query and key projections."""
    if isinstance(attention, CCNetAttention):
        return "criss_cross", 1, 1, attention.query, attention.key
    if isinstance(attention, CrissCrossAttention):
        return "criss_cross", attention.num_heads, 1, attention.q_proj, attention.k_proj
    if isinstance(attention, EfficientSelfAttention):
        ratio: int = attention.sequence_reduction_ratio
        heads: int = attention.num_attention_heads
        return "efficient", heads, ratio, attention.q_proj, attention.k_proj
    raise EngineError(f"stage {stage + 1}: the weights of {type(attention).__name__} cannot be shown")
