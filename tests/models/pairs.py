"""Pairs of our model and a plain one with the same weights and names, and ways to change one module.

The plain model is transformers' own. In place of our criss-cross attention it has the textbook version: a
softmax over all pairs of positions, masked to pairs in the same row or column.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import SegformerForSemanticSegmentation

from ccsegformer.models.attention.ccnet import CCNetAttention
from ccsegformer.models.attention.criss_cross import CrissCrossAttention
from tests.models.test_modeling import pixels, shake, tiny

RECURRENCE = 2
KINDS: dict[str, dict[str, Any]] = {
    "efficient": {"attention": "efficient"},
    "criss_cross": {"attention": "criss_cross", "recurrence": RECURRENCE},
    "ccnet": {"attention": ["efficient", "criss_cross"] * 2, "projection": "ccnet", "recurrence": RECURRENCE},
}
IMAGES = pixels(2, 48, 64).double()


def make_pair(kind: str = "efficient", **overrides: Any) -> tuple[nn.Module, nn.Module]:
    """Return our model and the plain one, in float64 and evaluation mode."""
    overrides = {"classifier_dropout_prob": 0.0, **KINDS[kind], **overrides}
    ours = tiny(**overrides).double().eval()
    shake(ours)
    theirs = SegformerForSemanticSegmentation(ours.config).double().eval()
    for stages in zip(ours.segformer.stages, theirs.segformer.stages, strict=True):
        for block, plain in zip(*(stage.blocks for stage in stages), strict=True):
            if isinstance(block.attention, CrissCrossAttention | CCNetAttention):
                plain.attention = TextbookAttention(block.attention)
    theirs.load_state_dict(ours.state_dict())
    logits_of(theirs)  # transformers hooks its stages on the first call, which must come before changes
    return ours, theirs


shared_pair = functools.cache(make_pair)


def changeable_pair(kind: str = "efficient") -> list[nn.Module]:
    """Return a pair that the test may change, deterministic in training too."""
    return copy.deepcopy(list(shared_pair(kind, drop_path_rate=0.0)))


class TextbookAttention(nn.Module):
    """Criss-cross attention by its definition, with the submodules of one of ours."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.recurrence = ours.recurrence
        self.heads = ours.num_heads if isinstance(ours, CrissCrossAttention) else None
        for name, module in ours.named_children():
            self.add_module(name, copy.deepcopy(module))
        if self.heads is None:
            self.gamma = nn.Parameter(torch.empty_like(ours.gamma))

    def forward(self, hidden_states: Tensor, height: int, width: int, **_: Any) -> tuple[Tensor, None]:
        rows, columns = torch.arange(height * width) // width, torch.arange(height * width) % width
        cross = (rows[:, None] == rows) | (columns[:, None] == columns)
        attend = self.multi_head if self.heads else self.ccnet
        added = torch.zeros_like(hidden_states)
        for _ in range(self.recurrence):
            added = added + attend(hidden_states + added, cross, height, width)
        return added, None

    def multi_head(self, tokens: Tensor, cross: Tensor, height: int, width: int) -> Tensor:
        query, key, value = self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens)
        heads = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        attended = scaled_dot_product_attention(*heads, attn_mask=cross).transpose(1, 2).flatten(2)
        image = value.transpose(1, 2).unflatten(2, (height, width))
        return self.o_proj(attended + self.lepe(image).flatten(2).transpose(1, 2))

    def ccnet(self, tokens: Tensor, cross: Tensor, height: int, width: int) -> Tensor:
        query, key, value = self.query(tokens), self.key(tokens), self.value(tokens)
        return self.gamma * scaled_dot_product_attention(query, key, value, attn_mask=cross, scale=1.0)


def names_of(kind: str, part: str = "") -> list[str]:
    """Return the names of callable submodules (not module lists) that contain `part`."""
    modules = shared_pair(kind)[0].named_modules()
    return [
        name for name, module in modules if name and part in name and not isinstance(module, nn.ModuleList)
    ]


def logits_of(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        return model(images).logits


def gradients_of(model: nn.Module, images: Tensor = IMAGES) -> dict[str, Tensor | None]:
    """Return every parameter's gradient, from a loss that weights each pixel and class differently."""
    model.zero_grad()
    logits = model(images).logits
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * weights).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def check_two_steps(models: list[nn.Module]) -> None:
    """Compare logits and gradients, and every tensor after two training steps."""
    ours, theirs = models
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]
    for _ in range(2):
        assert_equal(logits_of(ours), logits_of(theirs))
        assert_equal(gradients_of(ours), gradients_of(theirs))
        for optimizer in optimizers:
            optimizer.step()
    assert_equal(dict(ours.state_dict()), dict(theirs.state_dict()))


def assert_equal(actual: Any, expected: Any) -> None:
    """Compare up to float64 rounding, which is far below any change that the tests make."""
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


def scaled(value: Any) -> Any:
    """Multiply each element by a different factor, so that no norm cancels the change."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value * torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    if isinstance(value, dict):
        return type(value)(**{key: scaled(item) for key, item in value.items()})
    if isinstance(value, tuple | list):
        return type(value)(map(scaled, value))
    return value


def tensors(value: Any) -> list[Tensor]:
    """Return all tensors in the inputs or outputs of a module."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for item in items for tensor in tensors(item)]


class Wrapper(nn.Module):
    """Module that scales the output of another module."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return scaled(self.wrapped(*args, **kwargs))


@contextlib.contextmanager
def hooked(model: nn.Module, name: str, *hooks: str) -> Iterator[list[list[Tensor]]]:
    """Scale a module's output, or what the given hooks may change, and record what each call receives."""
    seen: list[list[Tensor]] = []
    handles = []
    for hook in hooks or ("forward_hook",):

        def change(
            module: nn.Module, *values: Any, changed: int = -1 if hook == "forward_hook" else 0
        ) -> Any:
            seen.append(tensors(values))
            return scaled(values[changed])

        register = getattr(model.get_submodule(name), f"register_{hook}")
        handles.append(
            register(change, prepend=True)
        )  # before transformers' own hook, which collects features
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def wrapped(model: nn.Module, name: str) -> Iterator[None]:
    """Scale a module's output by wrapping the module."""
    with replaced(model, name, Wrapper(model.get_submodule(name))):
        yield


@contextlib.contextmanager
def subclassed(model: nn.Module, name: str) -> Iterator[None]:
    """Scale a module's output by subclassing the module."""
    module = model.get_submodule(name)
    kind = type(module)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return scaled(kind.forward(self, *args, **kwargs))

    module.__class__ = type("Subclass", (kind,), {"forward": forward})
    try:
        yield
    finally:
        module.__class__ = kind


@contextlib.contextmanager
def overridden(model: nn.Module, name: str) -> Iterator[None]:
    """Scale a module's output by replacing `forward` in the instance, as accelerate does."""
    module = model.get_submodule(name)
    original: Callable[..., Any] = module.forward
    module.forward = lambda *args, **kwargs: scaled(original(*args, **kwargs))
    try:
        yield
    finally:
        del module.forward


@contextlib.contextmanager
def replaced(model: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """Replace a submodule."""
    original = model.get_submodule(name)
    model.set_submodule(name, module)
    try:
        yield
    finally:
        model.set_submodule(name, original)
