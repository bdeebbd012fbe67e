"""Costs are counted and measured correctly."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.cost import count_flops, measure_cost
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.ops import criss_cross_attention


class Attention(nn.Module):
    """Attention of an image to itself, without projections."""

    config = SimpleNamespace(num_channels=3)

    def __init__(self, criss_cross: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.criss_cross = criss_cross

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        heads = (pixels * self.weight).unsqueeze(-1).expand(*pixels.shape, 16).contiguous()
        if self.criss_cross:
            return criss_cross_attention(heads, heads, heads)
        tokens = heads.flatten(2, 3)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


class Convolution(nn.Sequential):
    config = SimpleNamespace(num_channels=3)


def test_a_multiply_add_is_two_operations():
    assert count_flops(Convolution(nn.Conv2d(3, 8, 3, padding=1)), 10, 12) == 2 * (3 * 3 * 3 * 8) * 10 * 12


@pytest.mark.parametrize(("criss_cross", "keys"), [(True, 10 + 12), (False, 10 * 12)])
def test_attention_is_counted(criss_cross, keys):
    heads, dim = 3, 16
    assert count_flops(Attention(criss_cross), 10, 12) == 2 * 2 * heads * 10 * 12 * keys * dim


def test_counting_keeps_the_training_mode():
    model = Convolution(nn.Conv2d(3, 4, 1), nn.Dropout()).train()
    count_flops(model, 4, 4)
    assert model.training
    assert model[1].training


DEFINITIONS = """
import torch
from ccsegformer.lab import memory

def one_after_the_other():
    torch.ones(16 * 2**18)
    torch.ones(48 * 2**18)

def lasting():
    kept = torch.ones(48 * 2**18)
    for _ in range(20):
        kept.mul_(1)

def after_loading():
    lasting()
    begin[0]()
    torch.ones(8 * 2**18)

def sampled(run):
    watch = memory._SampledPeak()
    watch.begin()
    run()
    return watch.end()

begin = []
memory.free_at_once()
"""


def peak_mebibytes(measure: str) -> float:
    """Return what an expression evaluates to in a fresh process, in MiB."""
    command = [sys.executable, "-c", f"{DEFINITIONS}print({measure})"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 2**20


def test_the_peak_is_the_largest_use_at_one_time():
    assert peak_mebibytes('memory.peak_memory(one_after_the_other, "cpu")') == pytest.approx(48, abs=6)


def test_the_sampled_peak_sees_memory_that_is_held_for_a_while():
    assert peak_mebibytes("sampled(lasting)") == pytest.approx(48, abs=6)


def test_memory_used_while_loading_does_not_count():
    measure = 'memory.peak_memory(after_loading, "cpu", begin.append)'
    assert peak_mebibytes(measure) == pytest.approx(8, abs=3)


def test_cost_of_a_saved_model_in_a_fresh_process(tmp_path):
    config = CrissCrossSegformerConfig.mit("b0", num_labels=4, attention="criss_cross")
    model = CrissCrossSegformerForSemanticSegmentation(config)
    model.save_pretrained(tmp_path)
    measured = measure_cost(tmp_path, 64, 96)
    assert measured.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert measured.gflops == count_flops(model, 64, 96) / 1e9
    on_gpu = torch.cuda.is_available()
    assert (measured.height, measured.width) == (64, 96)
    assert measured.device == ("cuda" if on_gpu else "cpu")
    assert measured.threads == torch.get_num_threads()
    assert measured.images_per_second > 0
    # The decoder's 256-channel maps at quarter resolution alone take 1.5 MiB; compilation takes more.
    assert 1 < measured.peak_memory_mib < 200
    assert measured.engine.startswith("torch " if on_gpu else "openvino ")


def test_a_model_that_cannot_be_loaded_is_reported_in_one_line(tmp_path):
    with pytest.raises(CCSegformerError, match="cost at 64 x 64") as caught:
        measure_cost(tmp_path / "nothing", 64, 64)
    assert "\n" not in str(caught.value)
