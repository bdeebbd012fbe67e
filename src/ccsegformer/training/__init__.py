"""From a recipe to trained weights: validated recipes, freezing, and the run on transformers' Trainer."""
