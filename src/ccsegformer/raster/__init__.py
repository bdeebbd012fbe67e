"""Georeferenced rasters.

read: open rasters and read windows of pixels.
georeference: outlines of rasters and windows on the map, in any CRS.
labels: masks and polygons that label a scene.
dataset: data set of scenes with labels, in tiles.
random_windows: random training windows of scenes, and band statistics.
overlaps: warnings about scenes of two splits that overlap.
write: label maps as Cloud-Optimized GeoTIFFs.
polygons: label maps as GeoPackage, GeoJSON or GeoParquet.
"""
