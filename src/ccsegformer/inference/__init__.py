"""Trained models on new images and scenes."""

from ccsegformer.inference.predictor import load_model, predict_files
from ccsegformer.inference.scene import predict_scene

__all__ = ["load_model", "predict_files", "predict_scene"]
