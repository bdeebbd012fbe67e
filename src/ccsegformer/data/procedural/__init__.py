"""Generated aerial scenes: the demo's data set, and GeoTIFFs to try things on."""
