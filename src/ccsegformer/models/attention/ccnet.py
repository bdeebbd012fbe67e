"""CCNet's criss-cross attention: the configuration's `projection="ccnet"`."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization

from ccsegformer.models.attention._recurrence import apply_repeatedly
from ccsegformer.ops import criss_cross_attention


class CCNetAttention(nn.Module):
    """The criss-cross module of CCNet (https://arxiv.org/abs/1811.11721), without its residual.

    One head, C/8 channels in queries and keys, C in values, no scale, no output projection. The output is
    multiplied by a learned gamma, which starts at 0. The block adds the residual.

    Args:
        hidden_size: Channels C, at least 8.
        recurrence: Number of applications, at least 1, with shared weights.
    """

    def __init__(self, hidden_size: int, recurrence: int) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.query = nn.Linear(hidden_size, hidden_size // 8)
        self.key = nn.Linear(hidden_size, hidden_size // 8)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_states: Tensor, height: int, width: int, **_: Any) -> tuple[Tensor, None]:
        """Attend in (batch, height * width, C). The second item stands for weights, which are not stored."""
        return apply_repeatedly(self.attend, self.recurrence, hidden_states, height, width), None

    def attend(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Apply the module once."""
        query, key, value = (
            projection(hidden_states).unflatten(1, (height, width)).unsqueeze(1)
            for projection in (self.query, self.key, self.value)
        )
        attended = criss_cross_attention(query, key, value, scale=1.0)
        return self.gamma * attended.squeeze(1).flatten(1, 2)

    def set_initial_weights(self) -> None:
        """Set gamma to 0, so that training starts from a network without attention."""
        initialization.zeros_(self.gamma)
