import pytest
from torch import nn

from ccsegformer.errors import TrainingError
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.training.freezing import freeze


@pytest.fixture
def model() -> nn.Module:
    config = CrissCrossSegformerConfig(
        hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], decoder_hidden_size=16, num_labels=3
    )
    return CrissCrossSegformerForSemanticSegmentation(config)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def names(model: nn.Module, *parts: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if any(part in name for part in parts)}


def test_none_trains_everything(model: nn.Module) -> None:
    freeze(model, "encoder", None)
    freeze(model, "none", None)
    assert trained(model) == names(model, "")


def test_encoder_leaves_the_decode_head(model: nn.Module) -> None:
    freeze(model, "encoder", None)
    assert trained(model) == names(model, "decode_head.")


def test_report_trains_the_new_attention_and_the_decode_head(model: nn.Module) -> None:
    new = names(model, "stages.2.blocks.0.attention")
    freeze(model, "report", (2,))
    assert trained(model) == new | names(model, "decode_head.")
    assert len(new) == 10


def test_report_from_scratch_trains_attention_and_the_decode_head(model: nn.Module) -> None:
    freeze(model, "report", None)
    assert trained(model) == names(model, ".attention.", "decode_head.")
    assert len(names(model, ".attention.")) == 4 * 10


def test_nothing_left_to_train_is_an_error(model: nn.Module) -> None:
    with pytest.raises(TrainingError, match="'encoder' leaves nothing to train"):
        freeze(model.segformer, "encoder", None)
