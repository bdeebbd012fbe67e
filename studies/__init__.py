"""Experiments about the method. They import the package, never the reverse."""
