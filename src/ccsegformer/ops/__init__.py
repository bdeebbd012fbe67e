"""Criss-cross attention as functions of tensors, without parameters."""

from ccsegformer.ops.composition import composed_criss_cross_weights
from ccsegformer.ops.criss_cross import criss_cross_attention
from ccsegformer.ops.reference import criss_cross_weights

__all__ = ["composed_criss_cross_weights", "criss_cross_attention", "criss_cross_weights"]
