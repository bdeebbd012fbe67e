"""Generated aerial scenes: the data set of the demo, and GeoTIFFs for trying things out."""
