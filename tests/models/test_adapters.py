"""peft's adapters work in every layer, criss-cross attention included, as in transformers' model."""

import copy
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import set_seed

from tests.models.pairs import IMAGES, assert_equal, changeable_pair, gradients_of, logits_of

# peft uses a deprecated name of transformers, and warns about cases that these tests want.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning"),
    pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias:UserWarning"),
]

HEAD = "decode_head"
EFFICIENT = {
    "every dense layer": {"target_modules": "all-linear"},
    "every layer": {
        "target_modules": r".*\.(\w+_proj|proj|fc\d|sequence_reduction\.\w+n|linear_fuse|classifier)"
    },
    "fuse and classifier": {"target_modules": ["linear_fuse", "classifier"]},
    "projections": {"target_modules": r"decode_head\.linear_projections\.\d\.proj"},
    "one projection": {"target_modules": r"decode_head\.linear_projections\.2\.proj"},
    "queries and values beside a trained head": {
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": [HEAD],
    },
    "queries and values beside a trained norm": {
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": ["batch_norm"],
    },
    "magnitudes apart": {"target_modules": ["q_proj", "proj", "linear_fuse"], "use_dora": True},
    "with a trained bias": {"target_modules": ["proj", "classifier"], "bias": "lora_only"},
}
CRISS_CROSS = {
    "every dense layer": {"target_modules": "all-linear"},
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "LePE": {"target_modules": ["lepe"], "r": 96},  # the rank must be a multiple of the groups
    "attention beside a trained head": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": [HEAD]},
}
CCNET = {
    "every dense layer": {"target_modules": "all-linear"},
    "attention": {"target_modules": ["query", "key", "value"]},
    "attention beside a trained head": {"target_modules": ["query", "value"], "modules_to_save": [HEAD]},
}
ADAPTERS = [
    pytest.param(kind, options, id=f"{kind}: {what}")
    for kind, adapters in (("efficient", EFFICIENT), ("criss_cross", CRISS_CROSS), ("ccnet", CCNET))
    for what, options in adapters.items()
]


# peft cannot merge adapters of grouped convolutions.
MERGEABLE = [each for each in ADAPTERS if "lepe" not in each.values[1]["target_modules"]]


def adapted(kind: str, options: dict[str, object]) -> list[PeftModel]:
    """Return both models with adapters of the same nonzero weights."""
    models = []
    for model in changeable_pair(kind):
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **options})).double()
        set_seed(0)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
        models.append(adapted)
    assert list(models[0].state_dict()) == list(models[1].state_dict())
    return models


def trained(model: nn.Module) -> dict[str, Tensor | None]:
    gradients = gradients_of(model)
    return {name: gradients[name] for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(("kind", "options"), ADAPTERS)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_adapters_have_the_same_effect_and_gradients(
    kind: str, options: dict[str, object], training: bool
) -> None:
    ours, theirs = (model.train(training) for model in adapted(kind, options))
    expected = logits_of(theirs)
    with theirs.disable_adapter():
        assert not torch.allclose(logits_of(theirs), expected)
    assert_equal(logits_of(ours), expected)
    gradients = trained(ours)
    assert_equal(gradients, trained(theirs))
    # Only key biases may have no gradient but rounding: a softmax ignores a shift of all keys.
    idle = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert not idle


@pytest.mark.parametrize(("kind", "options"), MERGEABLE)
def test_merging_changes_nothing(kind: str, options: dict[str, object]) -> None:
    model = adapted(kind, options)[0].eval()
    expected = logits_of(model)
    merged = model.merge_and_unload()
    assert not [name for name in merged.state_dict() if "lora" in name]
    assert_equal(logits_of(merged), expected)
    if "modules_to_save" not in options:
        assert merged.decode_head._is_linear()


@pytest.mark.parametrize("kind", ["efficient", "criss_cross"])
def test_adapters_under_gradient_checkpointing(kind: str) -> None:
    gradients = []
    for options in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        set_seed(0)
        model = changeable_pair(kind)[0].train()
        if options:
            model.activation_checkpointing_enable(options)
        adapters = LoraConfig(target_modules=["q_proj", "fc1"], init_lora_weights=False)
        gradients.append(trained(get_peft_model(model, adapters).double()))
    assert_equal(gradients[1], gradients[0])
    assert_equal(gradients[2], gradients[0])


def test_two_adapters() -> None:
    # Only one adapter is active. The other must not be folded in.
    ours, theirs = adapted("efficient", EFFICIENT["fuse and classifier"])
    for model in (ours, theirs):
        model.add_adapter("other", LoraConfig(target_modules=["linear_fuse"], init_lora_weights=False))
        model.double().eval()
    theirs.load_state_dict(ours.state_dict())
    seen = []
    for name in ("default", "other"):
        for model in (ours, theirs):
            model.set_adapter(name)
        seen.append(logits_of(ours))
        assert_equal(seen[-1], logits_of(theirs))
    assert not torch.allclose(*seen)


def test_adapters_compile() -> None:
    torch.compiler.reset()
    model = adapted("criss_cross", {"target_modules": ["linear_fuse", "q_proj", "proj"]})[0].eval()
    expected = logits_of(model)
    assert_equal(logits_of(torch.compile(model, fullgraph=True, backend="aot_eager")), expected)


def test_adapters_in_mixed_precision() -> None:
    ours, theirs = (model.float().eval() for model in adapted("efficient", EFFICIENT["every layer"]))
    expected = logits_of(copy.deepcopy(theirs).double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        errors = [(logits_of(model, IMAGES.float()) - expected).norm() for model in (ours, theirs)]
    assert errors[0] < 2 * errors[1] < 0.2 * expected.norm()


def test_every_named_layer_has_an_adapter() -> None:
    model = adapted("efficient", EFFICIENT["every layer"])[0]
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    without = {name for name in layers if not re.search(r"lora_|base_layer", name)}
    assert {name.rpartition(".")[2] for name in without} == {"dwconv"}
