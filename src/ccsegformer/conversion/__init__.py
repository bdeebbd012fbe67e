"""Conversion of a trained SegFormer to criss-cross attention, with unlabelled images."""

from ccsegformer.conversion.run import Conversion, convert

__all__ = ["Conversion", "convert"]
