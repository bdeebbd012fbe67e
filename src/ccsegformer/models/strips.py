"""Work on feature maps a strip of rows at a time, so that what is wide never leaves the processor's cache.

A block's intermediates are up to four times as wide as its input. Written whole they go to memory and back
once an operation, and every new page of them costs a fault; a strip of them, a megabyte, does neither. Nor
need they be kept for the backward pass: it makes each strip again. The arithmetic is the same, to rounding.

On CPU alone: on a GPU the launches of a strip cost more than its memory.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

STRIP_ELEMENTS = 2**18
"""Of the widest intermediate: 1 MiB in float32, which stays in a core's cache and in malloc's reach."""

TRAINING_ELEMENTS = 2**22
"""Below this many, keeping the widest intermediate for the backward pass is cheaper than making it again."""

PLAIN = {kind.forward for kind in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)}


class Strip(NamedTuple):
    """Rows of an output, of some of the images, and the rows of the input that they need."""

    images: slice
    rows: slice
    needed: slice
    above: int
    """How many of the needed rows stand above the strip itself."""

    @property
    def height(self) -> int:
        """How many rows of the output."""
        return int(self.rows.stop - self.rows.start)

    @property
    def own(self) -> slice:
        """The strip's own rows among those needed, where input and output have as many."""
        return slice(self.above, self.above + self.height)


def works_in_strips(tensor: Tensor, elements: int, *modules: nn.Module) -> bool:
    """Whether strips serve here: on CPU, with modules whose weights may be used directly.

    Not where a graph is captured, which wants no loops; not under autocast; and not where an adapter, a
    quantised layer, a hook or a weight kept elsewhere stands in a module's place.

    Args:
        tensor: the input.
        elements: of the widest intermediate, whole.
        modules: whose weights are used.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or tensor.device.type != "cpu":
        return False
    return (
        elements >= (TRAINING_ELEMENTS if torch.is_grad_enabled() else STRIP_ELEMENTS)
        and not torch.is_autocast_enabled("cpu")
        and all(is_plain(module, tensor) for module in modules)
    )


def is_plain(module: nn.Module, tensor: Tensor) -> bool:
    """Whether a module does what PyTorch's own does, with a weight that fits the tensor."""
    forward = getattr(module.forward, "__func__", None)
    if forward not in PLAIN or module._forward_hooks or module._forward_pre_hooks:
        return False
    weight = module.weight
    return not module._backward_hooks and (weight.device, weight.dtype) == (tensor.device, tensor.dtype)


def cut(batch: int, height: int, elements: int, *, halo: int = 0, stride: int = 1) -> list[Strip]:
    """Cut an output of `batch` images of `height` rows into strips.

    Args:
        batch, height: of the output.
        elements: of the widest intermediate, in one row of the output.
        halo: how many rows of the input, beyond its own, a strip needs above and below.
        stride: rows of the input in a row of the output.
    """
    rows = max(STRIP_ELEMENTS // elements, 1)
    images = max(STRIP_ELEMENTS // (elements * height), 1)
    found = []
    for image, first in product(range(0, batch, images), range(0, height, rows)):
        last = min(first + rows, height)
        top, end = max(first * stride - halo, 0), min(last * stride + halo, height * stride)
        needed, above = slice(top, end), first * stride - top
        found.append(Strip(slice(image, image + images), slice(first, last), needed, above))
    return found


def in_strips(
    run: Callable[..., Tensor],
    strips: list[Strip],
    out_shape: tuple[int, ...],
    inputs: Tensor,
    *shared: Tensor,
) -> Tensor:
    """The strips that `run` makes of `inputs`, side by side. Differentiable in `inputs` and `shared`.

    Args:
        run: called with the needed rows of the input, (images, rows, width, C), with the strip, and
            with `shared`; returns the strip's rows of the output, (images, rows, ...).
        strips: as `cut` gives them.
        out_shape: (batch, height, ...).
        inputs: (batch, input height, width, C).
        shared: further tensors that `run` needs whole, such as weights.
    """
    out: Tensor = _InStrips.apply(run, strips, out_shape, inputs, *shared)
    return out


class _InStrips(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Any, strips: list[Strip], out_shape: Any, inputs: Tensor, *shared: Tensor
    ) -> Tensor:
        ctx.run, ctx.strips = run, strips
        ctx.save_for_backward(inputs, *shared)
        out = inputs.new_empty(out_shape)
        for strip in strips:
            out[strip.images, strip.rows] = run(inputs[strip.images, strip.needed], strip, *shared)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *shared = (tensor.detach() for tensor in ctx.saved_tensors)
        needs_grad = ctx.needs_input_grad[4:]
        wanted = [each.requires_grad_() for each, needed in zip(shared, needs_grad, strict=True) if needed]
        grad_inputs = torch.zeros_like(inputs)
        totals = [torch.zeros_like(each) for each in wanted]
        for strip in ctx.strips:
            part = inputs[strip.images, strip.needed].detach().requires_grad_()
            with torch.enable_grad():
                out = ctx.run(part, strip, *shared)
            grad_part, *shares = torch.autograd.grad(out, [part, *wanted], grad[strip.images, strip.rows])
            grad_inputs[strip.images, strip.needed] += grad_part
            for total, share in zip(totals, shares, strict=True):
                total += share
        found = iter(totals)
        return None, None, None, grad_inputs, *(next(found) if needed else None for needed in needs_grad)
