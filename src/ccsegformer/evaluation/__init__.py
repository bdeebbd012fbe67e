"""Scores of a model on a data set, and what running it costs."""
