"""SegFormer's configuration, with a choice of attention for each stage."""

from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import SegformerConfig

from ccsegformer.models.attention import ATTENTIONS

PROJECTIONS = ("multi_head", "ccnet")

# Table 6 of the SegFormer paper (https://arxiv.org/abs/2105.15203): widths, depths, decoder width.
_MIT: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3), 768),
}


@strict
class CrissCrossSegformerConfig(SegformerConfig):
    """Configuration of a SegFormer whose stages attend by criss-cross or by Efficient Self-Attention.

    All of `transformers.SegformerConfig`, and:

    Args:
        attention: "criss_cross", "efficient" (SegFormer's own, with sequence reduction) or "none" (no
            attention branch: the control), for all stages or as a list with one for each.
        recurrence: how many times a criss-cross module is applied, sharing its weights. After one, a
            position has seen its row and column; after two, the whole image.
        projection: "multi_head" keeps SegFormer's query, key, value and output projections and heads;
            "ccnet" is the module of CCNet: one head, C/8 channels in queries and keys, no scale, and a
            learned gamma that starts at 0.
        lepe: whether multi-head criss-cross attention has a depthwise 3x3 convolution of its values beside
            it (locally-enhanced positional encoding). What is saved without the key has none.
        band_means, band_stds: of each of the `num_channels` bands that the model takes, in the units of the
            stored values: (values - means) / stds is what it was trained on. None for 8-bit RGB, divided by
            255 and normalised by ImageNet's.

    A model with efficient attention in every stage *is* a SegFormer, and its configuration is saved as
    one, so that transformers loads it without this package.

    Raises:
        ValueError: an unknown attention or projection, a recurrence below 1, fewer than two labels, widths
            that the heads do not divide, attention dropout beside criss-cross attention, which has none, or
            statistics that are not those of `num_channels` bands.
    """

    model_type = "ccsegformer"

    attention: str | list[str] | tuple[str, ...] = "criss_cross"
    recurrence: int = 1
    projection: str = "multi_head"
    lepe: bool = True
    band_means: list[float] | tuple[float, ...] | None = None
    band_stds: list[float] | tuple[float, ...] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check what SegFormer's own configuration does not."""
        super().__post_init__(**kwargs)
        stages = self.stage_attention
        if len(stages) != self.num_encoder_blocks or not set(stages) <= set(ATTENTIONS):
            raise ValueError(
                f"attention must be one of {', '.join(ATTENTIONS)}, or a list of {self.num_encoder_blocks}, "
                f"not {self.attention!r}"
            )
        if any(
            width % heads for width, heads in zip(self.hidden_sizes, self.num_attention_heads, strict=True)
        ):
            raise ValueError(
                f"hidden_sizes {tuple(self.hidden_sizes)} must be multiples of num_attention_heads "
                f"{tuple(self.num_attention_heads)}"
            )
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection must be one of {', '.join(PROJECTIONS)}, not {self.projection!r}")
        if self.recurrence < 1:
            raise ValueError(f"recurrence must be at least 1, not {self.recurrence}")
        if self.num_labels < 2:
            raise ValueError(f"num_labels must be at least 2, not {self.num_labels}")
        if "criss_cross" in stages and self.attention_probs_dropout_prob:
            raise ValueError("criss-cross attention has no dropout: attention_probs_dropout_prob must be 0")
        if (self.band_means is None) != (self.band_stds is None):
            raise ValueError("band_means and band_stds belong together")
        if self.band_means is not None and self.band_stds is not None:
            counts = len(self.band_means), len(self.band_stds)
            if counts != (self.num_channels, self.num_channels) or min(self.band_stds) <= 0:
                raise ValueError(
                    f"band_means and band_stds must be {self.num_channels} numbers each, the latter positive"
                )

    @property
    def stage_attention(self) -> tuple[str, ...]:
        """The attention of each stage."""
        if isinstance(self.attention, str):
            return (self.attention,) * self.num_encoder_blocks
        return tuple(self.attention)

    @classmethod
    def mit(cls, size: str, **overrides: Any) -> Self:
        """The published configuration of a size, "b0" to "b5", with overrides such as `num_labels=150`.

        Raises:
            ValueError: an unknown size, or an override that does not fit.
        """
        if size not in _MIT:
            raise ValueError(f"size must be one of {', '.join(_MIT)}, not {size!r}")
        hidden_sizes, depths, decoder_hidden_size = _MIT[size]
        published = {
            "hidden_sizes": hidden_sizes,
            "depths": depths,
            "decoder_hidden_size": decoder_hidden_size,
        }
        return cls(**{**published, **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', and knows that what one of ours was saved without, it does not have."""
        if config_dict.get("model_type") == cls.model_type:
            config_dict = {"lepe": False, **config_dict}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As saved: a configuration with efficient attention everywhere is SegFormer's own."""
        output = super().to_dict()
        if set(self.stage_attention) == {"efficient"}:
            output["model_type"] = SegformerConfig.model_type
            if output.get("architectures"):
                output["architectures"] = [
                    name.removeprefix("CrissCross") for name in output["architectures"]
                ]
        return output
