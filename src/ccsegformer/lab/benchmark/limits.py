"""Prepare measurements of the machine's own limits, which bound the time of any contender."""

from collections.abc import Callable

import torch
from torch import Tensor

from ccsegformer.lab.benchmark.runtimes import HINTS, compile_openvino
from ccsegformer.lab.benchmark.worker import Work

LIMIT_KINDS = ("matrix product", "copy", "exponentials")
SIDE, ELEMENTS = 2048, 2**26
CACHED, TIMES = 2**15, 64
"""Elements per thread and repetitions of exponentials, limited by arithmetic only in cache."""


def prepare(*, what: str, dtype: str, device: str, runtime: str = "torch") -> Work:
    """Prepare a matrix product of 2048 x 2048, a copy of 2^26 elements, or exponentials in cache.

    Args:
        what: One of `LIMIT_KINDS`.
        dtype: Dtype of the elements.
        device: Device to run on.
        runtime: "torch", or "openvino" for OpenVINO's matrix product.
    """
    if runtime == "openvino":
        return Work(_openvino_product(dtype), dict, {what: 2 * SIDE**3})
    options = {"dtype": getattr(torch, dtype), "device": device}
    if what == "matrix product":
        left, right, product = (torch.randn(SIDE, SIDE).to(**options) for _ in range(3))
        return Work(lambda: torch.mm(left, right, out=product), dict, {what: 2 * SIDE**3})
    if what == "copy":
        source = torch.zeros(ELEMENTS, **options)
        target = torch.empty_like(source)
        return Work(lambda: target.copy_(source), dict, {what: 2 * ELEMENTS * source.itemsize})
    if device.startswith("cuda"):  # stays in registers only if compiled
        chain = torch.compile(_chain)
        values = torch.zeros(ELEMENTS, dtype=torch.float32, device=device)  # softmax uses float32
        return Work(lambda: chain(values), dict, {what: TIMES * ELEMENTS})
    source = torch.zeros(CACHED * torch.get_num_threads(), **options)
    target = torch.empty_like(source)

    def repeat() -> None:
        for _ in range(TIMES):
            torch.exp(source, out=target)

    return Work(repeat, dict, {what: TIMES * source.numel()})


def _openvino_product(dtype: str) -> Callable[[], object]:
    """Return OpenVINO's product of a matrix and a constant, as for weights."""
    import openvino
    from openvino import opset15 as ops

    kind, shape = getattr(openvino.Type, HINTS[dtype]), [SIDE, SIDE]
    matrix = openvino.Tensor(kind, shape)
    matrix.data.view("uint8")[:] = torch.randn(shape).to(getattr(torch, dtype)).view(torch.uint8).numpy()
    left = ops.parameter(shape, kind)
    model = openvino.Model([ops.matmul(left, ops.constant(matrix), False, True)], [left])
    request = compile_openvino(model, HINTS[dtype]).create_infer_request()
    request.set_input_tensor(matrix)
    return request.infer


def _chain(values: Tensor) -> Tensor:
    for _ in range(TIMES):
        values = torch.exp(-values)
    return values
