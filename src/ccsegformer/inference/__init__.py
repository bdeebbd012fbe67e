"""Trained models on new images."""

from ccsegformer.inference.predictor import load_model, predict_files

__all__ = ["load_model", "predict_files"]
