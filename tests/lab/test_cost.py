import subprocess
import sys

import pytest
import torch
from torch import nn

from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.cost import count_flops, measure_cost
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.ops import criss_cross_attention


class Attention(nn.Module):
    """Attention of an image with itself, without any projection."""

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


def test_a_multiply_add_is_two_operations():
    assert count_flops(nn.Conv2d(3, 8, 3, padding=1), 10, 12) == 2 * (3 * 3 * 3 * 8) * 10 * 12


@pytest.mark.parametrize(("criss_cross", "keys"), [(True, 10 + 12), (False, 10 * 12)])
def test_attention_is_counted(criss_cross, keys):
    heads, dim = 3, 16
    assert count_flops(Attention(criss_cross), 10, 12) == 2 * 2 * heads * 10 * 12 * keys * dim


def test_counting_keeps_the_training_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout()).train()
    count_flops(model, 4, 4)
    assert model.training
    assert model[1].training


def peak_mebibytes(measure: str) -> float:
    """What an expression prints in a fresh process: one with a past has free memory to use again, unseen."""
    lines = "import psutil, torch\nfrom ccsegformer.evaluation import memory\nmemory.free_at_once()\n"
    lines += "def one_after_the_other():\n    torch.ones(16 * 2**18)\n    torch.ones(48 * 2**18)\n"
    lines += "def lasting():\n    kept = torch.ones(48 * 2**18)\n    for _ in range(20): kept.mul_(1)\n"
    lines += "begin = []\ndef after_loading():\n    lasting()\n    begin[0]()\n    torch.ones(8 * 2**18)\n"
    command = [sys.executable, "-c", f"{lines}print({measure})"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 2**20


def test_peak_memory_is_that_of_the_largest_moment():
    assert peak_mebibytes('memory.peak_memory(one_after_the_other, "cpu")') == pytest.approx(48, abs=6)


def test_sampled_peak_sees_what_lasts():
    sampled = 'setattr(memory, "_resident", memory._Sampled) or memory.peak_memory(lasting, "cpu")'
    assert peak_mebibytes(sampled) == pytest.approx(48, abs=6)


def test_what_is_loaded_first_does_not_count():
    measure = 'memory.peak_memory(after_loading, "cpu", begin.append)'
    assert peak_mebibytes(measure) == pytest.approx(8, abs=3)


def test_cost_of_a_saved_model_in_a_fresh_process(tmp_path):
    config = CrissCrossSegformerConfig.mit("b0", num_labels=4, attention="criss_cross")
    model = CrissCrossSegformerForSemanticSegmentation(config)
    model.save_pretrained(tmp_path)
    measured = measure_cost(tmp_path, 64, 96, device="cpu")
    assert measured.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert measured.gflops == count_flops(model, 64, 96) / 1e9
    assert (measured.height, measured.width, measured.device) == (64, 96, "cpu")
    assert measured.threads == torch.get_num_threads()
    assert measured.images_per_second > 0
    # Decoder maps of 256 channels at quarter resolution alone are 1.5 MiB; what is compiled comes on top.
    assert 1 < measured.peak_memory_mib < 200
    assert measured.engine.startswith("openvino ")


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path):
    with pytest.raises(CCSegformerError, match="cost at 64 x 64") as caught:
        measure_cost(tmp_path / "nothing", 64, 64)
    assert "\n" not in str(caught.value)
