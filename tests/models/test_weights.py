"""Computed, quantised, pruned, offloaded and passed-in weights work as in transformers' model."""

from collections.abc import Callable

import accelerate
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from transformers import set_seed

from tests.models.pairs import IMAGES, assert_equal, changeable_pair, check_two_steps, gradients_of, logits_of

Edit = Callable[[nn.Module], object]


def each(kind: type, edit: Edit) -> Edit:
    """Return an edit that changes every module of a class."""
    return lambda model: [edit(module) for module in list(model.modules()) if isinstance(module, kind)]


def pruned(weight: str) -> Edit:
    """Return an edit that prunes three tenths of a weight."""
    return lambda module: prune.l1_unstructured(module, weight, 0.3)


EDITS: dict[str, Edit] = {
    "weight norm": each(nn.Linear, parametrizations.weight_norm),
    "weight norm of the fuse": lambda model: parametrizations.weight_norm(model.decode_head.linear_fuse),
    "weight norm by hooks": each(nn.Linear, weight_norm),
    "weight norm of the fuse by hooks": lambda model: weight_norm(model.decode_head.linear_fuse),
    "spectral norm": each(nn.Linear, parametrizations.spectral_norm),
    "spectral norm of the fuse": lambda model: parametrizations.spectral_norm(model.decode_head.linear_fuse),
    "spectral norm of the fuse by hooks": lambda model: spectral_norm(model.decode_head.linear_fuse),
    "pruned": each(nn.Linear | nn.Conv2d, pruned("weight")),
    "pruned projection": lambda model: pruned("weight")(model.decode_head.linear_projections[1].proj),
    "pruned bias": lambda model: pruned("bias")(model.decode_head.linear_projections[1].proj),
    "pruned fuse": lambda model: pruned("weight")(model.decode_head.linear_fuse),
    "pruned norm": lambda model: pruned("weight")(model.decode_head.batch_norm),
}
OF_EVERY_LAYER = ["weight norm", "weight norm by hooks", "spectral norm", "pruned"]


@pytest.mark.parametrize(
    ("kind", "what"),
    [*(("efficient", what) for what in EDITS)]
    + [(kind, what) for kind in ("criss_cross", "ccnet") for what in OF_EVERY_LAYER],
)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_computed_weights(kind: str, what: str, training: bool) -> None:
    models = changeable_pair(kind)
    for model in models:
        set_seed(0)
        EDITS[what](model.train(training))
    check_two_steps(models)


def test_a_permanently_pruned_layer_is_folded_again() -> None:
    ours, theirs = changeable_pair()
    for model in (ours, theirs):
        fuse = model.decode_head.linear_fuse
        prune.l1_unstructured(fuse, "weight", 0.3)
        prune.remove(fuse, "weight")
    assert (ours.decode_head.linear_fuse.weight == 0).float().mean() > 0.25
    assert ours.decode_head._is_linear()
    assert_equal(logits_of(ours), logits_of(theirs))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_dynamic_quantisation() -> None:
    ours, theirs = (model.float() for model in changeable_pair())
    image = IMAGES.float()
    expected = logits_of(theirs, image)
    quantised = [
        logits_of(torch.ao.quantization.quantize_dynamic(model, {nn.Linear}), image)
        for model in (ours, theirs)
    ]
    effect = (quantised[1] - expected).norm()
    assert effect > 1e-3 * expected.norm()
    # Activations are rounded to 8 bits, so the last bit of float32 can make a difference.
    assert (quantised[0] - quantised[1]).norm() < 0.2 * effect


def test_offloaded_weights() -> None:
    # The weights of a module are only there while it is called.
    ours, theirs = changeable_pair()
    expected = logits_of(theirs)
    accelerate.cpu_offload(ours, execution_device="cpu")
    assert ours.decode_head.linear_fuse.weight.is_meta
    assert_equal(logits_of(ours), expected)


def test_passed_in_weights() -> None:
    ours, theirs = changeable_pair()
    outputs = []
    for model in (ours, theirs):
        weights = {name: 1.1 * parameter.detach() for name, parameter in model.named_parameters()}

        def loss(weights: dict[str, torch.Tensor], model: nn.Module = model) -> torch.Tensor:
            return torch.func.functional_call(model, weights, (IMAGES,)).logits.square().mean()

        outputs.append(torch.func.grad_and_value(loss)(weights))
    assert_equal(*outputs)


class LayerOnlyTensor(torch.Tensor):
    """Weight of its own class in an ordinary layer, like torchao's, that only the layer can multiply by."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "matmul" in function.__name__:
            raise NotImplementedError
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_of_another_class(compiled: bool) -> None:
    ours, theirs = changeable_pair()
    projection = ours.decode_head.linear_projections[1].proj
    projection.weight = nn.Parameter(projection.weight.detach().as_subclass(LayerOnlyTensor))
    check_head(ours.decode_head, theirs.decode_head, compiled=compiled)


@pytest.mark.parametrize("edit", ["weight norm of the fuse", "pruned projection", "pruned norm"])
def test_compiled_heads(edit: str) -> None:
    heads = []
    for model in changeable_pair():
        set_seed(0)
        EDITS[edit](model)
        heads.append(model.decode_head)
    check_head(*heads, compiled=True)


def check_head(ours: nn.Module, theirs: nn.Module, *, compiled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(1, width, height, 8, dtype=torch.float64, generator=generator)
        for width, height in ((8, 12), (16, 6), (24, 3), (32, 2))
    ]
    if compiled:
        torch.compiler.reset()
        ours = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_equal(ours(features), theirs(features))


def test_gradient_checkpointing_as_in_transformers() -> None:
    ours, theirs = (model.train() for model in changeable_pair())
    ours.activation_checkpointing_enable()
    assert_equal(gradients_of(ours), gradients_of(theirs))
