"""From which window size, if any, criss-cross attention suits large scenes."""
