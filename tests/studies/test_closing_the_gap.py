"""The designs: each differs from criss-cross attention, and starts, as its description says."""

from pathlib import Path

import pytest
import torch

from ccsegformer.data.labels import Classes
from studies.closing_the_gap.__main__ import gigaflops
from studies.closing_the_gap.designs import Normalised, TwiceUnshared, from_efficient, from_scratch
from studies.harness import build
from studies.options import Study

CLASSES = Classes(("red", "green", "blue"))
STUDY = Study("data", Path("runs"), (0,), 1, 32, 4, 8, only=())


def test_normalised_queries_ignore_their_length() -> None:
    module, tokens = Normalised(32, 2, 1), torch.randn(1, 20, 32)
    before = module.attend(tokens, 4, 5)
    for projection in (module.q_proj, module.k_proj):
        projection.weight.data *= 3
        projection.bias.data *= 3
    torch.testing.assert_close(module.attend(tokens, 4, 5), before, rtol=1e-3, atol=1e-3)


def test_the_second_module_sees_what_the_first_added() -> None:
    both, tokens = TwiceUnshared(32, 2), torch.randn(1, 20, 32)
    first = both.first.attend(tokens, 4, 5)
    torch.testing.assert_close(
        both(tokens, 4, 5, norm=torch.nn.Identity())[0], first + both.second.attend(tokens + first, 4, 5)
    )


@pytest.mark.parametrize("name", from_scratch(STUDY))
def test_every_design_from_scratch_labels_images(name: str) -> None:
    model = build(from_scratch(STUDY)[name].plan, CLASSES, 0, None)
    assert model(pixel_values=torch.zeros(2, 3, 64, 64)).logits.shape == (2, 3, 16, 16)


def test_operations_are_counted_at_both_sizes() -> None:
    designs = from_scratch(STUDY)
    counts = {name: gigaflops(designs[name], CLASSES) for name in ("cross", "detour alone", "none")}
    assert counts["none"][0] < counts["detour alone"][0] < counts["cross"][0]
    assert all(large > 15 * small for small, large in counts.values())  # 16 times the pixels


@pytest.mark.parametrize("name", from_efficient(STUDY))
def test_every_conversion_keeps_the_right_weights(name: str) -> None:
    efficient = build(STUDY.from_scratch(overrides=(("attention", "efficient"),)), CLASSES, 1, None)
    start = efficient.state_dict()
    plan = from_efficient(STUDY)[name].plan
    taken = build(plan, CLASSES, 0, start).state_dict()
    query = "segformer.stages.3.blocks.0.attention.q_proj.weight"
    assert torch.equal(taken[query], start[query]) == ("fresh" not in name)
    for part in ("segformer.stages.3.blocks.0.mlp.fc1.weight", "decode_head.classifier.weight"):
        assert torch.equal(taken[part], start[part])
