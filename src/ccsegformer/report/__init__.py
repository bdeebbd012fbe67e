"""Reports for people: scores and comparisons in the terminal and as HTML pages with charts."""
