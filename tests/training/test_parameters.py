from collections.abc import Iterator
from typing import Literal

import pytest
from torch import nn
from transformers import Trainer

from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.training._parameters import parameter_groups
from ccsegformer.training.freezing import freeze
from ccsegformer.training.recipe import OptimizerSection

PAPER = OptimizerSection(head_learning_rate_factor=10.0, weight_decay=0.01, decay_biases=True)


@pytest.fixture(params=["efficient", "multi_head", "ccnet"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    attention = {"attention": "efficient"} if request.param == "efficient" else {"projection": request.param}
    config = CrissCrossSegformerConfig(
        hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], decoder_hidden_size=16, num_labels=3, **attention
    )
    return CrissCrossSegformerForSemanticSegmentation(config)


def treatment(model: nn.Module, optimizer: OptimizerSection) -> dict[str, tuple[float, float]]:
    """Return learning rate and weight decay of every parameter in a group, each in only one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def entries() -> Iterator[tuple[str, tuple[float, float]]]:
        for group in parameter_groups(model, optimizer):
            for parameter in group["params"]:
                yield names[id(parameter)], (group["lr"], group["weight_decay"])

    found = list(entries())
    assert len(found) == len(dict(found))
    return dict(found)


def test_by_default_the_weights_decay_that_do_in_the_trainer(model: nn.Module) -> None:
    groups = parameter_groups(model, OptimizerSection(learning_rate=1e-3, weight_decay=0.1))
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.1), (1e-3, 0.0)]
    decaying = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    parameters = dict(model.named_parameters())
    expected = [parameters[name] for name in parameters if name in decaying and not name.endswith("gamma")]
    assert [*map(id, groups[0]["params"])] == [*map(id, expected)]
    assert sum(len(group["params"]) for group in groups) == len(parameters)


def test_the_paper_s_groups(model: nn.Module) -> None:
    found = treatment(model, PAPER)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, (learning_rate, decay) in found.items():
        assert learning_rate == pytest.approx(6e-4 if name.startswith("decode_head.") else 6e-5), name
        assert decay == (0.0 if "norm" in name or name.endswith("gamma") else 0.01), name
    assert found["segformer.stages.0.blocks.0.mlp.dwconv.dwconv.bias"] == (6e-5, 0.01)
    assert found["segformer.stages.0.patch_embeddings.layer_norm.bias"] == (6e-5, 0.0)
    assert found["decode_head.classifier.bias"] == pytest.approx((6e-4, 0.01))
    assert found["decode_head.batch_norm.weight"] == pytest.approx((6e-4, 0.0))


@pytest.mark.parametrize("policy", ["encoder", "report"])
def test_what_is_frozen_is_in_no_group(policy: Literal["encoder", "report"], model: nn.Module) -> None:
    everything = treatment(model, PAPER)
    freeze(model, policy, (2,))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert 0 < len(trained) < len(everything)
    assert treatment(model, PAPER) == {name: everything[name] for name in trained}
    assert all(group["params"] for group in parameter_groups(model, PAPER))
