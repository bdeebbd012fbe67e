"""SegFormer's all-MLP decode head, computed the short way."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead


class FoldedDecodeHead(SegformerDecodeHead):
    """transformers' `SegformerDecodeHead`, with the same parameters, outputs and gradients.

    That head projects each stage to the decoder's width D, resizes all four to quarter resolution and
    fuses their concatenation, 4 D channels, by a 1x1 convolution. Projection, bilinear resize and fuse are
    linear, and the resize acts on each channel alone with weights that sum to 1; so a stage's projection
    and its slice of the fuse compose into one D x C matrix, applied at the stage's own resolution *before*
    the resize, and the biases into one vector. This is algebra, not an approximation.
    """

    def forward(self, encoder_hidden_states: Sequence[Tensor], **_: Any) -> Tensor:
        """Feature maps (batch, C_i, H_i, W_i), finest first, to logits (batch, num_labels, H_0, W_0)."""
        matrices, bias = self._fold()
        size = encoder_hidden_states[0].shape[2:]
        hidden_states = conv2d(encoder_hidden_states[0], matrices[0], bias)
        for features, matrix in zip(encoder_hidden_states[1:], matrices[1:], strict=True):
            hidden_states += interpolate(conv2d(features, matrix), size=size, mode="bilinear")
        hidden_states = self.activation(self.batch_norm(hidden_states))
        return self.classifier(self.dropout(hidden_states))

    def _fold(self) -> tuple[list[Tensor], Tensor]:
        """A 1x1 kernel (D, C_i, 1, 1) for each stage, and the one bias (D,)."""
        # Small matrices: composing them in full precision costs nothing, and autocast would round twice.
        with torch.autocast(self.linear_fuse.weight.device.type, enabled=False):
            slices = self.linear_fuse.weight[:, :, 0, 0].chunk(len(self.linear_projections), dim=1)
            pairs = [
                (part, stage.proj)
                for part, stage in zip(reversed(slices), self.linear_projections, strict=True)
            ]
            matrices = [(part @ projection.weight)[:, :, None, None] for part, projection in pairs]
            bias = torch.stack([part @ projection.bias for part, projection in pairs]).sum(dim=0)
        return matrices, bias
