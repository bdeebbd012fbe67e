"""Whether, and from which window size, criss-cross attention suits large scenes."""
