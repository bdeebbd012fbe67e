"""Training: validated recipes, freezing of parameters, and runs on transformers' Trainer."""
