"""Which criss-cross design is at least as good as efficient attention."""
