"""A change to any one module has the same effect as in a plain model.

Adapters, quantisers, pruning, probes and offloading all hook, wrap, subclass or override modules. A model
that reads the weights of a layer without calling it would silently ignore them.
"""

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.models.pairs import (
    IMAGES,
    RECURRENCE,
    assert_equal,
    gradients_of,
    hooked,
    logits_of,
    names_of,
    overridden,
    replaced,
    scaled,
    shared_pair,
    subclassed,
    wrapped,
)

EVERY_MODULE = [(kind, name) for kind in ("efficient", "criss_cross") for name in names_of(kind)]
EVERY_MODULE += [("ccnet", name) for name in names_of("ccnet", "stages.1.blocks")]
BACKWARD_HOOKS = ("full_backward_hook", "full_backward_pre_hook")
every_module = pytest.mark.parametrize(("kind", "name"), EVERY_MODULE)


@pytest.mark.parametrize("kind", ["efficient", "criss_cross", "ccnet"])
def test_unchanged_models_agree(kind: str) -> None:
    ours, theirs = shared_pair(kind)
    assert_equal(logits_of(ours), logits_of(theirs))
    assert_equal(gradients_of(ours), gradients_of(theirs))


def test_names_are_those_of_transformers() -> None:
    ours, theirs = shared_pair("efficient")
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    # Optimizers identify parameters by their order.
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]


@pytest.mark.parametrize("kind", ["efficient", "criss_cross", "ccnet"])
def test_layers_keep_their_libraries_constructors(kind: str) -> None:
    # Adapters construct layers of the same class.
    layers = [module for module in shared_pair(kind)[0].modules() if not list(module.children())]
    assert {type(layer).__init__.__module__.split(".")[0] for layer in layers} <= {"torch", "transformers"}


@every_module
def test_a_changed_output_has_an_effect(kind: str, name: str) -> None:
    check_changed_output(*shared_pair(kind), name)


@pytest.mark.parametrize("name", names_of("efficient", "decode_head"))
def test_a_changed_output_has_an_effect_in_training(name: str) -> None:
    ours, theirs = shared_pair("efficient")
    try:
        for model in (ours, theirs):
            model.decode_head.train()
            model.decode_head.batch_norm.momentum = 0.0  # the models are shared
        check_changed_output(ours, theirs, name)
    finally:
        for model in (ours, theirs):
            model.decode_head.eval()


def check_changed_output(ours: nn.Module, theirs: nn.Module, name: str) -> None:
    unchanged = logits_of(theirs)
    with hooked(theirs, name) as seen_there:
        expected = logits_of(theirs)
    assert (expected - unchanged).abs().max() > 1e-5, "the change must be visible"
    with hooked(ours, name) as seen:
        assert_equal(logits_of(ours), expected)
    assert_equal(seen, seen_there)
    for change in (wrapped, subclassed, overridden):
        with change(ours, name):
            assert_equal(logits_of(ours), expected)
    assert_equal(logits_of(ours), unchanged)


@every_module
def test_a_changed_input_has_an_effect(kind: str, name: str) -> None:
    ours, theirs = shared_pair(kind)
    with hooked(ours, name, "forward_pre_hook") as seen, hooked(theirs, name, "forward_pre_hook") as expected:
        assert_equal(logits_of(ours), logits_of(theirs))
    assert_equal(seen, expected)


@pytest.mark.parametrize("kind", ["criss_cross", "ccnet"])
def test_a_recurrence_calls_its_layers_each_time(kind: str) -> None:
    model = shared_pair(kind)[0]
    attention = "segformer.stages.1.blocks.0.attention"
    for name in names_of(kind, attention):
        with hooked(model, name) as seen:
            logits_of(model)
        assert len(seen) == (1 if name == attention else RECURRENCE), name


@pytest.mark.parametrize(
    ("kind", "name", "hooks"),
    [
        pytest.param(kind, name, hooks, id="-".join([kind, name, *hooks]))
        for kind, name in EVERY_MODULE
        # PyTorch has no such hooks for modules that return a dataclass, and transformers' head gets the
        # features of the stages from before their hooks.
        if name != "segformer" and not re.fullmatch(r"segformer\.stages\.[012]", name)
        # Outside attention, all kinds of model are the same.
        if kind == "efficient" or "attention" in name
        # Each hook alone must make the head call its modules.
        for hooks in ([BACKWARD_HOOKS[:1], BACKWARD_HOOKS[1:]] if "head" in name else [BACKWARD_HOOKS])
    ],
)
@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed")
def test_changed_gradients_have_an_effect(kind: str, name: str, hooks: tuple[str, ...]) -> None:
    ours, theirs = shared_pair(kind)
    with hooked(ours, name, *hooks) as seen, hooked(theirs, name, *hooks) as expected:
        assert_equal(gradients_of(ours), gradients_of(theirs))
    assert_equal(seen, expected)


@every_module
def test_identity_in_place_of_a_module(kind: str, name: str) -> None:
    ours, theirs = shared_pair(kind)
    with replaced(ours, name, nn.Identity()), replaced(theirs, name, nn.Identity()):
        try:
            expected = logits_of(theirs)
        except (RuntimeError, TypeError, ValueError):  # the shapes do not allow an identity here
            with pytest.raises((RuntimeError, TypeError, ValueError)):
                logits_of(ours)
        else:
            assert_equal(logits_of(ours), expected)


@pytest.mark.parametrize("hook", ["forward_hook", "forward_pre_hook", *BACKWARD_HOOKS])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed")
@pytest.mark.filterwarnings("ignore:For backward hooks to be called")
def test_hooks_on_all_modules_have_an_effect(hook: str) -> None:
    def change(module: nn.Module, *values: Any) -> Any:
        return scaled(values[-1 if hook == "forward_hook" else 0]) if isinstance(module, nn.Conv2d) else None

    handle = getattr(torch.nn.modules.module, f"register_module_{hook}")(change)
    try:
        ours, theirs = shared_pair("efficient")
        assert_equal(logits_of(ours), logits_of(theirs))
        assert_equal(gradients_of(ours), gradients_of(theirs))
    finally:
        handle.remove()


def test_flops_are_those_of_the_folded_head() -> None:
    # PyTorch's counter hooks all modules to track where it is, and folding must still take place.
    head = shared_pair("efficient")[0].decode_head
    widths, sizes, fused, labels = (8, 16, 24, 32), (12 * 16, 6 * 8, 3 * 4, 2 * 2), 16, 3
    features = [
        torch.zeros(1, width, height, size // height, dtype=torch.float64)
        for width, size, height in zip(widths, sizes, (12, 6, 3, 2), strict=True)
    ]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        head(features)
    maps = sum(2 * size * width * fused for width, size in zip(widths, sizes, strict=True))
    composing = sum(2 * fused * fused * width for width in widths)
    classifying = 2 * sizes[0] * fused * labels
    assert counter.get_total_flops() == maps + composing + classifying


def test_image_sides_need_not_be_multiples_of_the_stride() -> None:
    ours, theirs = shared_pair("criss_cross")
    images = torch.cat([IMAGES, IMAGES.flip(3)], dim=3)[:, :, 3:, 5:90]
    assert_equal(logits_of(ours, images), logits_of(theirs, images))
