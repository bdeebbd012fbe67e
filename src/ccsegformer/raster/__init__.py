"""Georeferenced rasters: read, labelled, written, mapped."""
