"""Which parameters a run trains."""

from collections.abc import Collection
from typing import Literal

from torch import nn

from ccsegformer.errors import TrainingError

HEAD = "decode_head."


def freeze(
    model: nn.Module, policy: Literal["none", "encoder", "report"], new_parameters: Collection[str] | None
) -> None:
    """Set `requires_grad` of every parameter of a segmentation model.

    `none` trains everything, `encoder` the decode head alone. `report` is section 5.1 of the report: all is
    frozen but the decode head and the new attention.

    Args:
        new_parameters: names of those that were freshly made when pretrained weights were loaded, which
            `report` trains beside the decode head. None when nothing was loaded: then every attention is new.

    Raises:
        TrainingError: nothing would be left to train.
    """
    for name, parameter in model.named_parameters():
        if policy == "none" or name.startswith(HEAD):
            parameter.requires_grad = True
        elif policy == "encoder":
            parameter.requires_grad = False
        else:
            parameter.requires_grad = (
                ".attention." in name if new_parameters is None else name in new_parameters
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(f"training.freeze: '{policy}' leaves nothing to train; use 'none'")
