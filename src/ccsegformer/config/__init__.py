"""Recipes and protocols as YAML files: read, overridden and validated."""
