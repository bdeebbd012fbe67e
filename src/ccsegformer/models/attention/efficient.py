"""SegFormer's own attention."""

from torch import Tensor
from transformers import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerAttention, SegformerSequenceReduction


class EfficientSelfAttention(SegformerAttention):
    """transformers' Efficient Self-Attention (Xie et al., SegFormer, https://arxiv.org/abs/2105.15203).

    Args:
        config: Configuration of the model.
        stage: Index of the stage, from 0.
    """

    def __init__(self, config: SegformerConfig, stage: int) -> None:
        width, heads, ratio = (
            values[stage] for values in (config.hidden_sizes, config.num_attention_heads, config.sr_ratios)
        )
        super().__init__(config, width, heads, ratio)
        if ratio > 1:
            self.sequence_reduction = SequenceReduction(width, ratio)


class SequenceReduction(SegformerSequenceReduction):
    """transformers' sequence reduction, with the convolution on a channels-last image."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Reduce (batch, height * width, C) to (batch, height // R * width // R, C)."""
        image = hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return self.layer_norm(self.sequence_reduction(image).permute(0, 2, 3, 1).flatten(1, 2))
