"""Multi-head criss-cross attention, and the choice between it and CCNet's."""

from typing import Any

from torch import Tensor, nn
from transformers import SegformerConfig, initialization

from ccsegformer.models.attention._recurrence import apply_repeatedly
from ccsegformer.models.attention.ccnet import CCNetAttention
from ccsegformer.ops import criss_cross_attention


def build_criss_cross(config: SegformerConfig, stage: int) -> nn.Module:
    """Build the criss-cross module of a stage, with the projections that `config.projection` names."""
    width = config.hidden_sizes[stage]
    if config.projection == "ccnet":
        return CCNetAttention(width, config.recurrence)
    heads = config.num_attention_heads[stage]
    return CrissCrossAttention(width, heads, config.recurrence, lepe=config.lepe)


class CrissCrossAttention(nn.Module):
    """Multi-head criss-cross attention with SegFormer's projections, under the same parameter names.

    Args:
        hidden_size: Channels C, a multiple of `num_heads`.
        num_heads: Number of attention heads.
        recurrence: Number of applications, at least 1, with shared weights.
        lepe: Whether to add `LePE` of the values before the output projection.
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
        """Attend in (batch, height * width, C). The second item stands for weights, which are not stored."""
        return apply_repeatedly(self.attend, self.recurrence, hidden_states, height, width), None

    def attend(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Apply the module once."""
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
    """Locally-enhanced positional encoding: a depthwise 3x3 convolution in parallel with the attention.

    From CSWin Transformer (Dong et al., https://arxiv.org/abs/2107.00652), whose stripes also miss the
    diagonal neighbours. It starts at 0, so a pretrained SegFormer's projections first work unchanged. The
    constructor takes a convolution's arguments, because adapters create layers of the same class.
    """

    def set_initial_weights(self) -> None:
        """Set the weights to 0."""
        initialization.zeros_(self.weight)
