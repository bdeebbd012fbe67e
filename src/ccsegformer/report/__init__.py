"""What a person reads: scores and comparisons in the terminal, and as pages with charts."""
