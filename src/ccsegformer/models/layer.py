"""SegFormer's block, by transformers' parameters and names, with a shorter way through.

Maps stay token-major, (batch, height, width, C), from end to end: convolutions take them as channels-last
images. On CPU, what is wide or long is made in strips.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import conv2d, layer_norm, linear, scaled_dot_product_attention
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.segformer.modeling_segformer import (
    SegformerAttention,
    SegformerDropPath,
    SegformerMixMLP,
)

from ccsegformer.models.attention import CCNetAttention, CrissCrossAttention, add
from ccsegformer.models.configuration_ccsegformer import CrissCrossSegformerConfig
from ccsegformer.models.strips import Strip, cut, in_strips, works_in_strips


class CrissCrossSegformerLayer(GradientCheckpointingLayer):
    """Attention, then Mix-FFN, each after a layer norm and inside a residual.

    Args:
        config: the model's configuration.
        stage: index of the stage, from 0.
        drop_path: probability with which stochastic depth drops a branch, in training.
    """

    def __init__(self, config: CrissCrossSegformerConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        hidden_size, num_heads = config.hidden_sizes[stage], config.num_attention_heads[stage]
        kind = config.stage_attention[stage]
        self.has_attention = kind != "none"
        if self.has_attention:
            self.layernorm_before = nn.LayerNorm(hidden_size)
        if kind == "efficient":
            self.attention: nn.Module = EfficientSelfAttention(
                config, hidden_size, num_heads, config.sr_ratios[stage]
            )
        elif kind == "criss_cross" and config.projection == "ccnet":
            self.attention = CCNetAttention(hidden_size, config.recurrence)
        elif kind == "criss_cross":
            self.attention = CrissCrossAttention(hidden_size, num_heads, config.recurrence, lepe=config.lepe)
        self.drop_path = SegformerDropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.hidden_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm_after = nn.LayerNorm(hidden_size)
        widened = int(hidden_size * config.mlp_ratios[stage])
        self.mlp = MixFFN(config, in_features=hidden_size, hidden_features=widened)

    def forward(self, hidden_states: Tensor, height: int, width: int, **kwargs: Any) -> Tensor:
        """(batch, height * width, C) to the same."""
        if self.has_attention:
            norm = self.layernorm_before
            attended = self.attention(hidden_states, height, width, norm=norm, **kwargs)[0]
            hidden_states = add(self.drop_path(self.hidden_dropout(attended)), hidden_states)
        widened = self.mlp(hidden_states, height, width, norm=self.layernorm_after)
        return add(self.drop_path(widened), hidden_states)


class MixFFN(SegformerMixMLP):
    """Dense to 4 C, depthwise 3 x 3 convolution, GELU, dense back to C."""

    def forward(self, hidden_states: Tensor, height: int, width: int, *, norm: nn.LayerNorm) -> Tensor:
        """(batch, height * width, C), of which `norm` is still to be taken, to the same."""
        fc1, depthwise, fc2 = self.fc1, self.dwconv.dwconv, self.fc2
        grid = hidden_states.unflatten(1, (height, width))
        batch, hidden_size = grid.shape[0], fc1.out_features
        drops = self.training and self.dropout.p > 0
        if drops or not works_in_strips(grid, grid[..., 0].numel() * hidden_size, norm, fc1, depthwise, fc2):
            wide = depthwise(fc1(norm(grid)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            wide = self.dropout(self.activation_fn(wide))
            return self.dropout(fc2(wide)).flatten(1, 2)

        def run(part: Tensor, strip: Strip, *weights: Tensor) -> Tensor:
            norm_weight, norm_bias, fc1_weight, fc1_bias, kernel, kernel_bias, fc2_weight, fc2_bias = weights
            normed = layer_norm(part, norm.normalized_shape, norm_weight, norm_bias, norm.eps)
            wide = linear(normed, fc1_weight, fc1_bias).permute(0, 3, 1, 2)
            wide = conv2d(wide, kernel, kernel_bias, padding=1, groups=hidden_size).permute(0, 2, 3, 1)
            return linear(self.activation_fn(wide[:, strip.own]), fc2_weight, fc2_bias)

        strips = cut(batch, height, width * hidden_size, halo=1)
        return in_strips(run, strips, grid.shape, grid, *_weights(norm, fc1, depthwise, fc2)).flatten(1, 2)


class EfficientSelfAttention(SegformerAttention):
    """transformers' Efficient Self-Attention (Xie et al., SegFormer, https://arxiv.org/abs/2105.15203)."""

    def forward(
        self, hidden_states: Tensor, height: int, width: int, *, norm: nn.LayerNorm, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, height * width, C), of which `norm` is still to be taken, to the same; and weights."""
        ratio = self.sequence_reduction_ratio
        modules: list[nn.Module] = [norm, self.q_proj, self.k_proj, self.v_proj, self.o_proj]
        if ratio > 1:
            modules += [self.sequence_reduction.sequence_reduction, self.sequence_reduction.layer_norm]
        drops = self.training and self.attention_dropout > 0
        is_sdpa = self.config._attn_implementation == "sdpa"
        if drops or not is_sdpa or not works_in_strips(hidden_states, hidden_states.numel(), *modules):
            return super().forward(norm(hidden_states), height, width, **kwargs)

        grid = hidden_states.unflatten(1, (height, width))
        source = self._reduce_in_strips(norm, grid) if ratio > 1 else norm(hidden_states)
        key, value = (self._heads(projection(source)) for projection in (self.k_proj, self.v_proj))

        def run(part: Tensor, strip: Strip, key: Tensor, value: Tensor, *weights: Tensor) -> Tensor:
            norm_weight, norm_bias, q_weight, q_bias, o_weight, o_bias = weights
            normed = layer_norm(part, norm.normalized_shape, norm_weight, norm_bias, norm.eps)
            query = self._heads(linear(normed.flatten(1, 2), q_weight, q_bias))
            keys_and_values = key[strip.images], value[strip.images]
            attended = scaled_dot_product_attention(query, *keys_and_values, scale=self.scaling)
            return linear(attended.transpose(1, 2).reshape(part.shape), o_weight, o_bias)

        strips = cut(grid.shape[0], height, grid[0, 0].numel())
        weights = _weights(norm, self.q_proj, self.o_proj)
        return in_strips(run, strips, grid.shape, grid, key, value, *weights).flatten(1, 2), None

    def _heads(self, tokens: Tensor) -> Tensor:
        """(batch, N, C) as (batch, heads, N, head_dim)."""
        return tokens.unflatten(2, (-1, self.head_dim)).transpose(1, 2)

    def _reduce_in_strips(self, norm: nn.LayerNorm, grid: Tensor) -> Tensor:
        """The layer norm of (batch, height, width, C), reduced to (batch, fewer tokens, C)."""
        ratio, convolution = self.sequence_reduction_ratio, self.sequence_reduction.sequence_reduction
        batch, height, width, channels = grid.shape

        def run(part: Tensor, _: Strip, *weights: Tensor) -> Tensor:
            norm_weight, norm_bias, kernel, bias = weights
            normed = layer_norm(part, norm.normalized_shape, norm_weight, norm_bias, norm.eps)
            return conv2d(normed.permute(0, 3, 1, 2), kernel, bias, stride=ratio).permute(0, 2, 3, 1)

        shape = (batch, height // ratio, width // ratio, channels)
        strips = cut(batch, height // ratio, ratio * width * channels, stride=ratio)
        reduced = in_strips(run, strips, shape, grid, *_weights(norm, convolution))
        return self.sequence_reduction.layer_norm(reduced.flatten(1, 2))


def _weights(*modules: nn.Module) -> list[Tensor]:
    """The weight and the bias of each."""
    return [module.get_parameter(name) for module in modules for name in ("weight", "bias")]
