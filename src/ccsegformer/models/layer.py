"""SegFormer's block with a choice of attention, under transformers' parameter names.

Tokens (batch, height * width, C) have the memory layout of channels-last images, so convolutions here take
them without a copy. transformers transposes instead, which makes PyTorch copy twice in every block.
"""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.segformer.modeling_segformer import (
    SegformerDepthWiseConv,
    SegformerDropPath,
    SegformerMixMLP,
)

from ccsegformer.models.attention import ATTENTIONS
from ccsegformer.models.configuration_ccsegformer import CrissCrossSegformerConfig


class CrissCrossSegformerLayer(GradientCheckpointingLayer):
    """Attention and Mix-FFN, each with a layer norm before it and a residual around it.

    Args:
        config: Configuration of the model.
        stage: Index of the stage, from 0.
        drop_path: Probability that stochastic depth drops a branch in training.
    """

    def __init__(self, config: CrissCrossSegformerConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        hidden_size = config.hidden_sizes[stage]
        attention = ATTENTIONS[config.stage_attention[stage]].build(config, stage)
        self.has_attention = attention is not None
        if attention is not None:
            self.layernorm_before = nn.LayerNorm(hidden_size)
            self.attention = attention
        self.drop_path = SegformerDropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.layernorm_after = nn.LayerNorm(hidden_size)
        widened = int(hidden_size * config.mlp_ratios[stage])
        self.mlp = MixFFN(config, in_features=hidden_size, hidden_features=widened)
        self.hidden_dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, height: int, width: int, **kwargs: Any) -> Tensor:
        """Transform tokens (batch, height * width, C)."""
        if self.has_attention:
            attended, _ = self.attention(self.layernorm_before(hidden_states), height, width, **kwargs)
            hidden_states = self.drop_path(self.hidden_dropout(attended)) + hidden_states
        widened = self.mlp(self.layernorm_after(hidden_states), height, width)
        return self.drop_path(widened) + hidden_states


class MixFFN(SegformerMixMLP):
    """transformers' Mix-FFN: a linear layer to 4 C, depthwise 3x3 convolution, GELU, a linear layer to C."""

    def __init__(self, config: CrissCrossSegformerConfig, in_features: int, hidden_features: int) -> None:
        super().__init__(config, in_features, hidden_features)
        self.dwconv = DepthWiseConv(hidden_features)


class DepthWiseConv(SegformerDepthWiseConv):
    """transformers' depthwise convolution, on the tokens as a channels-last image."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Convolve tokens (batch, height * width, C)."""
        image = hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return self.dwconv(image).permute(0, 2, 3, 1).flatten(1, 2)
