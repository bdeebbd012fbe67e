"""The attentions as modules for SegFormer's blocks: tokens in, tokens out, no residual."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.segformer.modeling_segformer import SegformerAttention, SegformerSequenceReduction

from ccsegformer.models.configuration_ccsegformer import CrissCrossSegformerConfig
from ccsegformer.ops import criss_cross_attention


class EfficientSelfAttention(SegformerAttention):
    """transformers' Efficient Self-Attention (Xie et al., SegFormer, https://arxiv.org/abs/2105.15203)."""

    def __init__(self, config: CrissCrossSegformerConfig, stage: int) -> None:
        width, heads, ratio = (
            values[stage] for values in (config.hidden_sizes, config.num_attention_heads, config.sr_ratios)
        )
        super().__init__(config, width, heads, ratio)
        if ratio > 1:
            self.sequence_reduction = SequenceReduction(width, ratio)


class SequenceReduction(SegformerSequenceReduction):
    """transformers' sequence reduction; its convolution takes the tokens as a channels-last image."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """(batch, height * width, C) to (batch, height // R * width // R, C)."""
        image = hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return self.layer_norm(self.sequence_reduction(image).permute(0, 2, 3, 1).flatten(1, 2))


class CrissCrossAttention(nn.Module):
    """Multi-head criss-cross attention with SegFormer's own projections, by the same parameter names.

    With a recurrence R above 1 the module is applied R times, sharing its weights, each time to its input
    plus all that it has added so far; it returns the sum of what it added. So the block's residual counts
    the input once, whatever R (Huang et al., CCNet, section 3.3, https://arxiv.org/abs/1811.11721).

    Args:
        hidden_size: channels C, a multiple of `num_heads`.
        num_heads: attention heads.
        recurrence: R, at least 1.
        lepe: whether `LePE` of the values is added to the attention's output, before the output projection.
    """

    def __init__(self, hidden_size: int, num_heads: int, recurrence: int, *, lepe: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.recurrence = recurrence
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        self.lepe = LePE(hidden_size, hidden_size, 3, padding=1, groups=hidden_size) if lepe else None

    def forward(self, hidden_states: Tensor, height: int, width: int, **_: Any) -> tuple[Tensor, None]:
        """(batch, height * width, C) to the same; and no attention weights, which are never stored."""
        return _recur(self, hidden_states, height, width), None

    def attend(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """One application."""
        query, key, value = (
            projection(hidden_states).unflatten(1, (height, width))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = (
            grid.unflatten(3, (self.num_heads, -1)).permute(0, 3, 1, 2, 4) for grid in (query, key, value)
        )
        attended = criss_cross_attention(*heads).permute(0, 2, 3, 1, 4).flatten(3)
        if self.lepe is not None:
            attended = attended + self.lepe(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.o_proj(attended.flatten(1, 2))


class LePE(nn.Conv2d):
    """Locally-enhanced positional encoding: a depthwise 3x3 convolution beside the attention.

    Dong et al., CSWin Transformer (https://arxiv.org/abs/2107.00652), whose stripes miss the diagonal
    neighbours as the cross does. It begins at 0, so that a SegFormer's projections work on undisturbed; that
    is what the class is for. Its arguments are a convolution's, of which adapters make others like it.
    """


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

    def forward(self, hidden_states: Tensor, height: int, width: int, **_: Any) -> tuple[Tensor, None]:
        """As `CrissCrossAttention.forward`."""
        return _recur(self, hidden_states, height, width), None

    def attend(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """One application."""
        query, key, value = (
            projection(hidden_states).unflatten(1, (height, width)).unsqueeze(1)
            for projection in (self.query, self.key, self.value)
        )
        attended = criss_cross_attention(query, key, value, scale=1.0)
        return self.gamma * attended.squeeze(1).flatten(1, 2)


def _recur(
    module: CrissCrossAttention | CCNetAttention, hidden_states: Tensor, height: int, width: int
) -> Tensor:
    added = module.attend(hidden_states, height, width)
    for _ in range(module.recurrence - 1):
        added = added + module.attend(hidden_states + added, height, width)
    return added
