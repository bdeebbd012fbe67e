"""Select the parameters that a run trains."""

import re
from collections.abc import Collection
from typing import Literal

from torch import nn

from ccsegformer.errors import TrainingError

HEAD = "decode_head."


def freeze(
    model: nn.Module, policy: Literal["none", "encoder", "report"], new_attention: Collection[int] | None
) -> None:
    """Set `requires_grad` of every parameter of a segmentation model.

    Args:
        model: Segmentation model.
        policy: "none" trains everything, "encoder" only the decode head. "report" is section 5.1 of the
            university report: it trains the decode head and the new attention.
        new_attention: Stages, from 0, whose attention was not in the pretrained weights; None if nothing was
            loaded, so that every attention is new.

    Raises:
        TrainingError: Nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        if policy == "none" or name.startswith(HEAD):
            parameter.requires_grad = True
        elif policy == "encoder":
            parameter.requires_grad = False
        else:
            attention = re.search(r"stages\.(\d+)\..*\.attention\.", name)
            parameter.requires_grad = attention is not None and (
                new_attention is None or int(attention[1]) in new_attention
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(f"training.freeze: '{policy}' leaves nothing to train; use 'none'")
