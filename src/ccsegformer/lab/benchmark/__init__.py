"""Time and memory against transformers and the textbook formula."""
