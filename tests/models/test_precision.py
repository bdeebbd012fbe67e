"""Half precision of a model or of one module is as accurate as in transformers, and copies work."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from tests.models.pairs import (
    IMAGES,
    assert_equal,
    changeable_pair,
    logits_of,
    make_pair,
    names_of,
    shared_pair,
)

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def with_weights(name: str) -> bool:
    module = shared_pair()[0].get_submodule(name)
    return any(True for _ in module.parameters(recurse=False))


def errors(dtype: torch.dtype, models: list[nn.Module]) -> list[float]:
    """Return each model's error against the second one in float64, with the same rounded weights."""
    images = IMAGES.to(dtype)
    expected = logits_of(copy.deepcopy(models[1]).double(), images.double())
    return [((logits_of(model, images) - expected).norm() / expected.norm()).item() for model in models]


@pytest.mark.parametrize("dtype", HALVES)
def test_models_in_half_precision(dtype: str) -> None:
    models = [model.to(HALVES[dtype]) for model in changeable_pair()]
    assert logits_of(models[0], IMAGES.to(HALVES[dtype])).dtype == HALVES[dtype]
    ours, theirs = errors(HALVES[dtype], models)
    assert ours < 2 * theirs < 0.05


@pytest.mark.parametrize("kind", ["criss_cross", "ccnet"])
@pytest.mark.parametrize("dtype", HALVES)
def test_criss_cross_models_in_half_precision(kind: str, dtype: str) -> None:
    ours, theirs = errors(HALVES[dtype], [model.to(HALVES[dtype]) for model in changeable_pair(kind)])
    assert ours < 2 * theirs < 0.05


@pytest.mark.parametrize("name", list(filter(with_weights, names_of("efficient"))))
def test_one_module_in_float32(name: str) -> None:
    # Norms are often kept in float32. The result is bfloat16, float32 or an error, as in transformers.
    models = [model.bfloat16() for model in changeable_pair()]
    for model in models:
        model.get_submodule(name).float()
    images, results = IMAGES.bfloat16(), []
    for model in models:
        try:
            results.append(logits_of(model, images))
        except RuntimeError as error:
            results.append(type(error))
    if isinstance(results[1], torch.Tensor):
        assert results[0].dtype == results[1].dtype
        ours, theirs = errors(torch.bfloat16, models)
        assert ours < 2 * theirs < 0.05
    else:
        assert results[0] is results[1]


@pytest.mark.parametrize("name", list(filter(with_weights, names_of("efficient", "decode_head"))))
def test_one_module_in_half_precision_under_autocast(name: str) -> None:
    models = [model.float() for model in changeable_pair()]
    for model in models:
        model.get_submodule(name).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [logits_of(model, IMAGES.float()) for model in models]
    expected = logits_of(copy.deepcopy(models[1]).double())
    ours, theirs = ((output - expected).norm() for output in outputs)
    assert ours < 2 * theirs < 0.1 * expected.norm()


@pytest.mark.parametrize("kind", ["efficient", "criss_cross", "ccnet"])
def test_copies(kind: str) -> None:
    original = shared_pair(kind)[0]
    expected = logits_of(original)
    fresh = make_pair(kind)[0]
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(load(save(original.state_dict())))
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original)), fresh):
        assert torch.equal(logits_of(twin), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1)
        assert not torch.allclose(logits_of(twin), expected)
        assert torch.equal(logits_of(original), expected)


def test_a_changed_copy_leaves_the_original() -> None:
    original = changeable_pair()[0]
    expected = logits_of(original)
    twin = copy.deepcopy(original)
    handle = twin.decode_head.linear_fuse.register_forward_hook(lambda module, args, output: 2 * output)
    changed = logits_of(twin)
    assert not torch.allclose(changed, expected)
    assert_equal(logits_of(copy.deepcopy(twin)), changed)
    assert torch.equal(logits_of(original), expected)
    handle.remove()
    assert torch.equal(logits_of(twin), expected)
