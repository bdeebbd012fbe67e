"""Times and memory, printed again by a command each; no test depends on them."""
