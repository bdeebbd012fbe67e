"""`python -m ccsegformer`, which torchrun needs."""

from ccsegformer.cli import main

main()
