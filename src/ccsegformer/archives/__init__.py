"""Archives: map thousands of scenes on one machine or a cluster, resumably, into a STAC collection."""
