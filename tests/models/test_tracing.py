"""The model exports to a graph with dynamic batch, height and width."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation


class Logits(torch.nn.Module):
    """Module from a tensor to a tensor, as export needs it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("attention", ["criss_cross", "efficient"])
def test_export_with_dynamic_sizes(attention: str, context: Callable[[], Any]) -> None:
    config = CrissCrossSegformerConfig(
        num_encoder_blocks=2,
        hidden_sizes=(8, 16),
        depths=(1, 1),
        num_attention_heads=(1, 2),
        decoder_hidden_size=16,
        num_labels=3,
        attention=attention,
    )
    torch.manual_seed(0)
    network = Logits(CrissCrossSegformerForSemanticSegmentation(config).eval())
    sizes = {
        axis: torch.export.Dim(name, min=least)
        for axis, name, least in ((0, "b", 1), (2, "h", 64), (3, "w", 64))
    }
    with context():
        program = torch.export.export(network, (torch.zeros(2, 3, 96, 128),), dynamic_shapes=(sizes,))
        module = program.module()
        for batch, height, width in ((1, 64, 64), (3, 67, 515), (1, 1100, 65)):
            pixels = torch.randn(batch, 3, height, width)
            torch.testing.assert_close(module(pixels), network(pixels))
