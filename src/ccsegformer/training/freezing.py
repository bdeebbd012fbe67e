"""Which parameters a run trains."""

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

    `none` trains everything, `encoder` the decode head alone. `report` is section 5.1 of the report: all is
    frozen but the decode head and the new attention.

    Args:
        new_attention: stages, from 0, whose kind of attention the pretrained weights did not have; `report`
            trains it beside the decode head. None when nothing was loaded: then every attention is new.

    Raises:
        TrainingError: nothing would be left to train.
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
