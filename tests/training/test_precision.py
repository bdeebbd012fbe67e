"""Training starts from, updates and writes float32 weights, whatever the pretrained file holds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from ccsegformer.training.recipe import Recipe
from ccsegformer.training.trainer import train

MakeRecipe = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("freeze", ["none", "encoder"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_fine_tuning_of_what_is_stored_otherwise(
    stored: torch.dtype, freeze: str, precision: str, tmp_path: Path, data: Path, recipe: MakeRecipe
) -> None:
    sizes = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
    pretrained = SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=3)).to(stored)
    pretrained.save_pretrained(tmp_path / "pretrained")
    fine = recipe(
        model={"pretrained": str(tmp_path / "pretrained")},
        training={"steps": 3, "accumulation": 1, "precision": precision, "freeze": freeze},
        optimizer={"learning_rate": 6e-5},
        schedule={"warmup_steps": 0},
    )
    trained = train(fine, data, tmp_path / "run").model
    saved = load_file(tmp_path / "run" / "model.safetensors")
    dtypes = {tensor.dtype for tensor in saved.values() if tensor.is_floating_point()}
    assert dtypes == {torch.float32} and trained.dtype == torch.float32

    begun, moved, count = pretrained.state_dict(), 0, 0
    for name, parameter in trained.named_parameters():
        if name not in begun:
            continue
        begin = begun[name].float()
        if not parameter.requires_grad:
            assert torch.equal(parameter, begin), name
        else:
            moved += int((parameter != begin).sum())
            count += parameter.numel()
    assert moved > 0.99 * count
