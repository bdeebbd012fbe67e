"""What each step gave on CPU: `python -m benchmarks.steps [SIDE ...]`.

SegFormer-B0 with 150 classes, one image, float32, inference; from transformers' model to ours, a step at a
time, in one process and in turn. Every line's logits agree with transformers' before it is timed.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import SegformerForSemanticSegmentation
from transformers.models.segformer.modeling_segformer import SegformerMixMLP

from ccsegformer.models import (
    CrissCrossSegformerConfig,
    CrissCrossSegformerForSemanticSegmentation,
    decode_head,
    layer,
)

SIDES = (512, 1024)
ROUNDS = 5


def _theirs(self: SegformerMixMLP, tokens: Tensor, height: int, width: int, *, norm: nn.Module) -> Tensor:
    return SegformerMixMLP.forward(self, norm(tokens), height, width)


@contextmanager
def only(*, token_major: bool, strips: bool) -> Iterator[None]:
    """Ours, with these of its steps."""
    with ExitStack() as stack:
        if not strips:
            for module in (layer, decode_head):
                stack.enter_context(patch.object(module, "works_in_strips", lambda *_: False))
        if not token_major:
            stack.enter_context(patch.object(layer.MixFFN, "forward", _theirs))
        yield


STEPS = {
    "the decode head folded": {"token_major": False, "strips": False},
    "tokens as channels-last images": {"token_major": True, "strips": False},
    "strips": {"token_major": True, "strips": True},
}


def main() -> None:
    """Print a table for each side."""
    config = CrissCrossSegformerConfig.mit("b0", num_labels=150, attention="efficient")
    ours = CrissCrossSegformerForSemanticSegmentation(config).eval()
    theirs = SegformerForSemanticSegmentation._from_config(config, attn_implementation="sdpa").eval()
    theirs.load_state_dict(ours.state_dict())
    print(f"{torch.get_num_threads()} threads; medians of {ROUNDS}, in turn")
    for side in map(int, sys.argv[1:] or SIDES):
        pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        seconds: dict[str, list[float]] = {"transformers": [], **{name: [] for name in STEPS}}
        with torch.inference_mode():
            expected = theirs(pixels).logits
            for turn in range(ROUNDS + 1):
                for name, times in seconds.items():
                    model: Any = theirs if name == "transformers" else ours
                    with only(**STEPS[name]) if name in STEPS else ExitStack():
                        start = time.perf_counter()
                        logits = model(pixels).logits
                        times += [time.perf_counter() - start] if turn else []
                    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)
        print(f"\n| {side} x {side} | seconds | of transformers |\n|---|---:|---:|")
        for name, times in seconds.items():
            print(f"| {name} | {median(times):.3f} | {median(times) / median(seconds['transformers']):.0%} |")


if __name__ == "__main__":
    main()
