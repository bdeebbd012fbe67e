"""Measurements of time and memory, one command each; no test depends on their figures."""
