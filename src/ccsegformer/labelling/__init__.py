"""From pixels to labels: the engines that run a network."""
