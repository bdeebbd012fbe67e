"""Criss-cross attention as a module for SegFormer's blocks: tokens in, tokens out, no residual."""

from typing import Any

import torch
from torch import Tensor, nn

from ccsegformer.models.strips import cut, works_in_strips
from ccsegformer.ops import criss_cross_attention
from ccsegformer.ops.flash import as_columns, as_rows, attend, flash_refusal, merge

LONG_CROSS, LARGE_MAP = 3, 2**20
"""Positions of a cross for each channel, and elements of a map: from there on, projecting twice costs no more
than to write whole maps of queries, keys and values and to read them."""


class CrissCrossAttention(nn.Module):
    """Multi-head criss-cross attention with SegFormer's own projections, by the same parameter names.

    With a recurrence R above 1 the module is applied R times, sharing its weights, each time to its input
    plus all that it has added so far; what it returns is the sum of what it added. So the block's residual
    counts the input once, whatever R (Huang et al., CCNet, section 3.3, https://arxiv.org/abs/1811.11721).

    Args:
        hidden_size: channels C, a multiple of `num_heads`.
        num_heads: attention heads.
        recurrence: R, at least 1.
        lepe: whether `LePE` of the values is added to what is attended, before the output projection.
    """

    def __init__(self, hidden_size: int, num_heads: int, recurrence: int, *, lepe: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.recurrence = recurrence
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        self.lepe = LePE(hidden_size) if lepe else None

    def forward(
        self, hidden_states: Tensor, height: int, width: int, *, norm: nn.Module, **_: Any
    ) -> tuple[Tensor, None]:
        """(batch, height * width, C), of which `norm` is still to be taken, to the same.

        And no attention weights: they are never stored.
        """
        grid = hidden_states.unflatten(1, (height, width))
        modules = [norm, self.q_proj, self.k_proj, self.v_proj, self.o_proj]
        if self.lepe is not None:
            modules.append(self.lepe)
        if (
            torch.is_grad_enabled()
            or type(self) is not CrissCrossAttention  # whose `attend` may be another
            or self.recurrence > 1
            or not takes_strips(height, width, grid.shape[3])
            or flash_refusal(grid)
            or not works_in_strips(grid, grid.numel(), *modules)
        ):
            return _recur(self, norm(hidden_states), height, width), None
        return self._attend_in_strips(grid, norm).flatten(1, 2), None

    def attend(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """One application."""
        query, key, value = (
            projection(hidden_states).unflatten(1, (height, width)).unflatten(3, (self.num_heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = criss_cross_attention(*(grid.permute(0, 3, 1, 2, 4) for grid in (query, key, value)))
        del query, key  # large, when nothing else holds them
        attended = attended.permute(0, 2, 3, 1, 4).flatten(3)
        if self.lepe is not None:
            attended = add(attended, self.lepe(value.flatten(3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        del value
        return self.o_proj(attended.flatten(1, 2))

    def _attend_in_strips(self, grid: Tensor, norm: nn.Module) -> Tensor:
        """`attend` of (batch, height, width, C), where no graph is recorded, without a map but the output.

        Queries, keys and values are made twice, in strips of columns and in strips of rows.
        """

        def project(part: Tensor) -> list[Tensor]:
            normed = norm(part)
            projections = (self.q_proj, self.k_proj, self.v_proj)
            return [projection(normed).unflatten(3, (self.num_heads, -1)) for projection in projections]

        batch, height, width, channels = grid.shape
        scale = (channels // self.num_heads) ** -0.5
        out = torch.empty_like(grid)
        lse = grid.new_empty((batch, height, width, self.num_heads), dtype=torch.float32)
        for strip in cut(batch, width, height * channels):
            columns = strip.images, slice(None), strip.rows
            attended, lse[columns] = attend(as_columns, project(grid[columns]), scale)
            out[columns] = attended.flatten(3)
        for strip in cut(batch, height, width * channels, halo=0 if self.lepe is None else 1):
            rows, own = (strip.images, strip.rows), (slice(None), strip.own)
            tensors = project(grid[strip.images, strip.needed])
            within = [tensor[own] for tensor in tensors]
            column_pass = out[rows].view_as(within[2]), lse[rows]
            attended = merge(attend(as_rows, within, scale), column_pass, within, scale)[0].flatten(3)
            if self.lepe is not None:
                value = tensors[2].flatten(3).permute(0, 3, 1, 2)
                attended += self.lepe(value).permute(0, 2, 3, 1)[own]
            out[rows] = self.o_proj(attended.to(grid.dtype))
        return out


class LePE(nn.Conv2d):
    """Locally-enhanced positional encoding: a depthwise 3x3 convolution beside the attention.

    Dong et al., CSWin Transformer (https://arxiv.org/abs/2107.00652), whose stripes miss the diagonal
    neighbours as the cross does. It begins at 0, so that a SegFormer's projections work on undisturbed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=channels)


class CCNetAttention(nn.Module):
    """The criss-cross module of CCNet (https://arxiv.org/abs/1811.11721), as one of SegFormer's attentions.

    One head, C/8 channels in queries and keys, C in values, no scale, no output projection, and a learned
    gamma that starts at 0. It returns gamma times what was attended: the residual is the block's.

    Args:
        hidden_size: channels C, at least 8.
        recurrence: as in `CrissCrossAttention`.
    """

    def __init__(self, hidden_size: int, recurrence: int) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.query = nn.Linear(hidden_size, hidden_size // 8)
        self.key = nn.Linear(hidden_size, hidden_size // 8)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(
        self, hidden_states: Tensor, height: int, width: int, *, norm: nn.Module, **_: Any
    ) -> tuple[Tensor, None]:
        """As `CrissCrossAttention.forward`."""
        return _recur(self, norm(hidden_states), height, width), None

    def attend(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """One application."""
        query, key, value = (
            projection(hidden_states).unflatten(1, (height, width)).unsqueeze(1)
            for projection in (self.query, self.key, self.value)
        )
        attended = criss_cross_attention(query, key, value, scale=1.0)
        return self.gamma * attended.squeeze(1).flatten(1, 2)


def takes_strips(height: int, width: int, channels: int) -> bool:
    """Whether a map is so large that criss-cross attention in strips costs no time."""
    return height + width >= LONG_CROSS * channels and height * width * channels > LARGE_MAP


def _recur(
    module: CrissCrossAttention | CCNetAttention, hidden_states: Tensor, height: int, width: int
) -> Tensor:
    added = module.attend(hidden_states, height, width)
    for _ in range(module.recurrence - 1):
        added = added + module.attend(hidden_states + added, height, width)
    return added


def add(branch: Tensor, other: Tensor) -> Tensor:
    """Their sum; in the branch's own memory, which is nobody else's, where no graph is recorded."""
    if torch.is_grad_enabled() or branch.dtype != other.dtype:
        return branch + other
    return branch.add_(other)
