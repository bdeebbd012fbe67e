"""What a conversion to criss-cross attention costs in mean IoU, for several teachers."""
