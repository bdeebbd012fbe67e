"""SegFormer's all-MLP decode head, computed faster where its layers are unmodified."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.functional import interpolate, linear
from torch.nn.modules import module as global_hooks
from torch.utils.module_tracker import ModuleTracker
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead, SegformerMLP


class FoldedDecodeHead(SegformerDecodeHead):
    """transformers' `SegformerDecodeHead`, with the same parameters, outputs and gradients.

    transformers projects each stage to the decoder's width D, resizes all four to quarter resolution,
    concatenates them to 4 D channels and fuses these with a 1x1 convolution. Projection, bilinear resize and
    fuse are linear, and the resize acts on each channel separately with weights that sum to 1. A stage's
    projection and its slice of the fuse therefore compose into one D x C matrix, applied at the stage's own
    resolution *before* the resize, and all biases into one vector. The result is exact. A batch norm in
    evaluation mode is only a scale and a shift, and is folded in too.

    Folding reads the weights of layers without calling them. If one of them has been modified (an adapter, a
    quantised or pruned layer, a hook), or if there is a hook on all modules, nothing is folded and
    transformers' own forward runs.
    """

    def forward(self, encoder_hidden_states: Sequence[Tensor], **kwargs: Any) -> Tensor:
        """Map features (batch, C_i, H_i, W_i), finest first, to logits (batch, num_labels, H_0, W_0)."""
        is_usual = len(encoder_hidden_states) == len(self.linear_projections) and not _has_global_hooks()
        if not is_usual or not self._is_linear():
            return super().forward(encoder_hidden_states, **kwargs)
        folds_norm = _is_scale_and_shift(self.batch_norm, self.linear_fuse)
        matrices, bias = self._fold(with_norm=folds_norm)
        size = encoder_hidden_states[0].shape[2:]
        # Channels last: a 1x1 convolution is then one matrix product, and resizing needs no copy.
        maps = [features.permute(0, 2, 3, 1) for features in encoder_hidden_states]
        hidden_states = linear(maps[0], matrices[0], bias).permute(0, 3, 1, 2)
        for features, matrix in zip(maps[1:], matrices[1:], strict=True):
            projected = linear(features, matrix).permute(0, 3, 1, 2)
            hidden_states = hidden_states + interpolate(projected, size=size, mode="bilinear")
        if not folds_norm:
            hidden_states = self.batch_norm(hidden_states)
        return self.classifier(self.dropout(self.activation(hidden_states)))

    def fold(self) -> tuple[list[Tensor], Tensor] | None:
        """Fold everything up to the batch norm into a (D, C_i) matrix for each stage and one bias (D,).

        Returns:
            The matrices and the bias, or None if a layer is modified or the norm is in training mode.
        """
        if not self._is_linear() or not _is_scale_and_shift(self.batch_norm, self.linear_fuse):
            return None
        return self._fold(with_norm=True)

    def _is_linear(self) -> bool:
        """Return whether projections and fuse are unmodified, so that their weights describe them."""
        stages, fuse = self.linear_projections, self.linear_fuse
        if not all(is_plain(stage, SegformerMLP) and is_plain(stage.proj, nn.Linear) for stage in stages):
            return False
        layers = [stage.proj for stage in stages]
        return (
            is_plain(fuse, nn.Conv2d)
            and (fuse.kernel_size, fuse.stride, fuse.padding, fuse.groups) == ((1, 1), (1, 1), (0, 0), 1)
            and fuse.bias is None
            and all(layer.bias is not None for layer in layers)
            and {layer.out_features * len(layers) for layer in layers} == {fuse.in_channels}
            and len({weight.dtype for layer in (fuse, *layers) for weight in layer.parameters()}) == 1
        )

    def _fold(self, *, with_norm: bool) -> tuple[list[Tensor], Tensor]:
        """Return a (D, C_i) matrix for each stage, and the bias (D,)."""
        # The matrices are small: full precision costs nothing here, and autocast would round twice.
        device = self.linear_fuse.weight.device.type
        can_autocast = torch.amp.is_autocast_available(device)  # not on the meta device, used for counting
        with torch.autocast(device, enabled=False) if can_autocast else nullcontext():
            fuse, norm = self.linear_fuse.weight[:, :, 0, 0], self.batch_norm
            if with_norm:
                scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
                fuse = fuse * scale[:, None]
            slices = reversed(fuse.chunk(len(self.linear_projections), dim=1))
            pairs = [(part, stage.proj) for part, stage in zip(slices, self.linear_projections, strict=True)]
            matrices = [part @ projection.weight for part, projection in pairs]
            bias = torch.stack([part @ projection.bias for part, projection in pairs]).sum(dim=0)
            if with_norm:
                bias = bias + norm.bias - norm.running_mean * scale
        return matrices, bias


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module is exactly of this class, with the class's forward and without hooks.

    Only then do its weights alone describe what it computes. Adapters, quantised and parametrised layers have
    other classes, pruning and weight norm are hooks, and accelerate replaces `forward` in the instance.
    """
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and all(map(_is_ordinary, module.parameters(recurse=False)))
    )


def _is_ordinary(weight: Tensor) -> bool:
    """Return whether a weight is an ordinary floating-point tensor.

    A quantised layer may keep its class and have weights of another tensor class. `torch.export` replaces
    ordinary tensors by fake ones.
    """
    return type(weight) in (Tensor, nn.Parameter, FakeTensor) and weight.is_floating_point()


def _has_global_hooks() -> bool:
    """Return whether a hook is registered on all modules.

    PyTorch's module trackers do not count, because they change nothing. `FlopCounterMode` uses one, and has
    to count the operations that run without it.
    """
    return any(
        not isinstance(getattr(hook, "__self__", None), ModuleTracker)
        for hooks in (
            global_hooks._global_forward_hooks,
            global_hooks._global_forward_pre_hooks,
            global_hooks._global_backward_hooks,
            global_hooks._global_backward_pre_hooks,
        )
        for hook in hooks.values()
    )


def _is_scale_and_shift(norm: nn.Module, fuse: nn.Conv2d) -> bool:
    """Return whether a norm is a batch norm with fixed statistics, thus linear, in the dtype of the fuse."""
    if not isinstance(norm, nn.BatchNorm2d) or not is_plain(norm, nn.BatchNorm2d) or norm.training:
        return False
    if not norm.affine or norm.running_var is None or norm.num_features != fuse.out_channels:
        return False
    return {norm.weight.dtype, norm.running_var.dtype} == {fuse.weight.dtype}
