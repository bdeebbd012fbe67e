"""SegFormer for large images."""

__version__ = "0.1.0"
