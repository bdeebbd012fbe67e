"""What the machine itself can do, measured in the same run: the bounds that times are held against."""

import torch

from ccsegformer.benchmark.worker import Work

SIDE, ELEMENTS = 2048, 2**26


def prepare(*, what: str, dtype: str, device: str) -> Work:
    """A matrix product of 2048 x 2048, a copy of 2^26 elements, or as many exponentials."""
    options = {"dtype": getattr(torch, dtype), "device": device}
    if what == "matrix product":
        left, right, product = (torch.randn(SIDE, SIDE).to(**options) for _ in range(3))
        return Work(lambda: torch.mm(left, right, out=product), dict, 2 * SIDE**3)
    source = torch.zeros(ELEMENTS, **options)
    target = torch.empty_like(source)
    if what == "copy":
        return Work(lambda: target.copy_(source), dict, 0)
    return Work(lambda: torch.exp(source, out=target), dict, 0)


def per_second(what: str, seconds: float, dtype: str) -> float:
    """Floating-point operations, bytes read and written, or exponentials, a second."""
    done = {
        "matrix product": 2 * SIDE**3,
        "copy": 2 * ELEMENTS * getattr(torch, dtype).itemsize,
        "exponentials": ELEMENTS,
    }
    return done[what] / seconds
