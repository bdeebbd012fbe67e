"""Criss-cross attention as functions of tensors, without parameters."""

from ccsegformer.ops.criss_cross import criss_cross_attention
from ccsegformer.ops.reference import criss_cross_weights

__all__ = ["criss_cross_attention", "criss_cross_weights"]
