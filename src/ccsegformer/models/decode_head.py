"""SegFormer's all-MLP decode head, computed the short way."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, linear
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from ccsegformer.models.resizing import line_weights
from ccsegformer.models.strips import STRIP_ELEMENTS, is_plain, works_in_strips

FEWEST_ROWS = 4
"""Of a strip: the coarser maps' rows about it are resized for it, and again for the next."""


class FoldedDecodeHead(SegformerDecodeHead):
    """transformers' `SegformerDecodeHead`, with the same parameters, outputs and gradients.

    That head projects each stage to the decoder's width D, resizes all four to quarter resolution and
    fuses their concatenation, 4 D channels, by a 1x1 convolution. Projection, bilinear resize and fuse are
    linear, and the resize acts on each channel alone with weights that sum to 1; so a stage's projection
    and its slice of the fuse compose into one D x C matrix, applied at the stage's own resolution *before*
    the resize, and the biases into one vector. This is algebra, not an approximation. In evaluation the
    batch norm, a scale and a shift by then, is folded in as well.
    """

    def forward(self, encoder_hidden_states: Sequence[Tensor], **_: Any) -> Tensor:
        """Feature maps (batch, C_i, H_i, W_i), finest first, to logits (batch, num_labels, H_0, W_0)."""
        matrices, bias = self._fold()
        finest = encoder_hidden_states[0]
        grid = finest.shape[0], *finest.shape[2:], len(bias)
        modules = [*(stage.proj for stage in self.linear_projections), self.linear_fuse, self.classifier]
        if not torch.is_grad_enabled() and works_in_strips(finest, grid[1] * grid[2] * len(bias), *modules):
            return self._label_in_strips(encoder_hidden_states, matrices, bias)
        # Token-major: a 1x1 convolution is one matrix product, and resizing takes channels-last images.
        hidden_states = linear(finest.permute(0, 2, 3, 1), matrices[0], bias).permute(0, 3, 1, 2)
        for features, matrix in zip(encoder_hidden_states[1:], matrices[1:], strict=True):
            projected = linear(features.permute(0, 2, 3, 1), matrix).permute(0, 3, 1, 2)
            hidden_states = hidden_states + interpolate(projected, size=finest.shape[2:], mode="bilinear")
        if self.training:
            hidden_states = self.batch_norm(hidden_states)
        hidden_states = self.dropout(self.activation(hidden_states))
        if not is_plain(self.classifier, hidden_states):
            return self.classifier(hidden_states)
        weight, bias = self.classifier.weight[:, :, 0, 0], self.classifier.bias
        return linear(hidden_states.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)

    def _fold(self) -> tuple[list[Tensor], Tensor]:
        """A (D, C_i) matrix for each stage, and the one bias (D,)."""
        # Small matrices: composing them in full precision costs nothing, and autocast would round twice.
        device = self.linear_fuse.weight.device.type
        can_autocast = torch.amp.is_autocast_available(device)  # the meta device, which counts, can not
        with torch.autocast(device, enabled=False) if can_autocast else nullcontext():
            fuse, norm = self.linear_fuse.weight[:, :, 0, 0], self.batch_norm
            shift = torch.zeros_like(norm.weight)
            if not self.training:
                scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
                fuse, shift = fuse * scale[:, None], norm.bias - norm.running_mean * scale
            slices = fuse.chunk(len(self.linear_projections), dim=1)
            pairs = [
                (part, stage.proj)
                for part, stage in zip(reversed(slices), self.linear_projections, strict=True)
            ]
            matrices = [part @ projection.weight for part, projection in pairs]
            bias = torch.stack([part @ projection.bias for part, projection in pairs]).sum(dim=0) + shift
        return matrices, bias

    def _label_in_strips(self, maps: Sequence[Tensor], matrices: list[Tensor], bias: Tensor) -> Tensor:
        """The logits in evaluation; the one map of D channels is never whole."""
        batch, _, height, width = maps[0].shape
        classifier, depth = self.classifier, len(bias)
        logits = maps[0].new_empty(batch, classifier.out_channels, height, width)
        rows = max(2 * STRIP_ELEMENTS // (width * depth), FEWEST_ROWS)
        grids = [features.permute(0, 2, 3, 1) for features in maps]
        for first in range(0, height, rows):
            last = min(first + rows, height)
            blend = [line_weights(grid.shape[1], height, first, last, grid) for grid in grids[1:]]
            for image in range(batch):
                one, own = slice(image, image + 1), slice(first, last)
                hidden = linear(grids[0][one, own], matrices[0], bias).view(last - first, width * depth)
                for grid, matrix, (needed, weights) in zip(grids[1:], matrices[1:], blend, strict=True):
                    projected = linear(grid[one, needed], matrix).permute(0, 3, 1, 2)
                    size = projected.shape[2], width
                    across = interpolate(projected, size=size, mode="bilinear").permute(0, 2, 3, 1)
                    hidden.addmm_(weights, across.reshape(size[0], width * depth))
                active = self.activation(hidden).view(-1, depth)
                labelled = torch.addmm(classifier.bias[:, None], classifier.weight[:, :, 0, 0], active.mT)
                logits[image, :, own] = labelled.view(-1, last - first, width)
        return logits
