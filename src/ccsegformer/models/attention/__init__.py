"""The attentions that a stage of the network can have.

To add one, write its module in a file of this folder and give it an entry in `ATTENTIONS`.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from transformers import SegformerConfig

from ccsegformer.models.attention.criss_cross import build_criss_cross
from ccsegformer.models.attention.efficient import EfficientSelfAttention


class Attention(NamedTuple):
    """How an attention is built, and how reports show it.

    Attributes:
        label: Its name in tables and charts.
        light, dark: Its CSS colours in light and dark mode.
        marker: Its matplotlib marker: "s", "o", "D" or "^", which the page draws as well.
        build: Function of a `CrissCrossSegformerConfig` and the index of a stage that returns the module, or
            None for a block without attention. The module takes tokens (batch, height * width, C), height
            and width, and returns a pair whose first item is what the block adds to its input. A module whose
            parameters start otherwise than SegFormer's has a method `set_initial_weights`.
    """

    label: str
    light: str
    dark: str
    marker: str
    build: Callable[[SegformerConfig, int], nn.Module | None]

    @property
    def phrase(self) -> str:
        """The name inside a sentence, such as "criss-cross attention"."""
        label = self.label.lower()
        return label if label.endswith("attention") else f"{label} attention"


CONTROL = "none"
"""Name of the network without attention, which every comparison includes."""

ATTENTIONS: dict[str, Attention] = {
    "efficient": Attention("Efficient", "#0b6bab", "#62b5f2", "s", EfficientSelfAttention),
    "criss_cross": Attention("Criss-cross", "#c4500c", "#ff9152", "o", build_criss_cross),
    CONTROL: Attention("No attention", "#767b83", "#9ba1aa", "D", lambda config, stage: None),
}
