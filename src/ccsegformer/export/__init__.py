"""Trained models as single files: ONNX, or PyTorch's pt2."""
