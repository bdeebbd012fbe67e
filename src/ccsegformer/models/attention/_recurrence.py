"""The recurrence that both criss-cross modules share."""

from collections.abc import Callable

from torch import Tensor


def apply_repeatedly(
    attend: Callable[[Tensor, int, int], Tensor], times: int, tokens: Tensor, height: int, width: int
) -> Tensor:
    """Apply `attend` several times, each time to the input plus everything added so far.

    The sum of the outputs is returned without the input, so the block's residual counts the input once
    (Huang et al., CCNet, section 3.3, https://arxiv.org/abs/1811.11721).
    """
    added = attend(tokens, height, width)
    for _ in range(times - 1):
        added = added + attend(tokens + added, height, width)
    return added
