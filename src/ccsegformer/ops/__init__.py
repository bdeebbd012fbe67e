"""Criss-cross attention as mathematics: tensors in, tensors out."""

from ccsegformer.ops.criss_cross import criss_cross_attention
from ccsegformer.ops.reference import criss_cross_weights

__all__ = ["criss_cross_attention", "criss_cross_weights"]
