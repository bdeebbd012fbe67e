"""SegFormer's configuration with a choice of attention for each stage."""

from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import SegformerConfig

from ccsegformer.models.attention import ATTENTIONS

PROJECTIONS = ("multi_head", "ccnet")

# Widths, depths and decoder width, from table 6 of the SegFormer paper (https://arxiv.org/abs/2105.15203).
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
    """Configuration of a SegFormer with a choice of attention in each stage.

    Takes all arguments of `transformers.SegformerConfig`, and:

    Args:
        attention: Name of an attention in `ccsegformer.models.attention.ATTENTIONS`, such as "criss_cross",
            "efficient" (SegFormer's own, with sequence reduction) or "none" (no attention branch, the
            control), for all stages, or a list with one name for each stage.
        recurrence: Number of times that a criss-cross module is applied, with shared weights. After one
            application a position has seen its row and column, after two the whole image.
        projection: "multi_head" for SegFormer's query, key, value and output projections and heads; "ccnet"
            for the module of CCNet: one head, C/8 channels in queries and keys, no scale, and a learned gamma
            that starts at 0.
        lepe: Whether multi-head criss-cross attention adds a depthwise 3x3 convolution of its values
            (locally-enhanced positional encoding). A saved configuration without this key means False.
        band_means, band_stds: Mean and standard deviation of each of the `num_channels` input bands, in the
            units of the stored values. The model takes (values - means) / stds. None means 8-bit RGB, divided
            by 255 and normalised with ImageNet's statistics.
        scene_bands: Numbers, from 1, of the bands of scenes that the model was trained on, in its order. None
            means all but alpha.

    A model with efficient attention in every stage *is* a SegFormer. Its configuration is saved as one, so
    transformers loads it without this package. With `num_labels=1` there is one logit, as in transformers.

    Raises:
        ValueError: The attention or projection is unknown, the recurrence is below 1, there is no label,
            the heads do not divide the widths, attention dropout is set with criss-cross
            attention, which has none, or the statistics or the bands do not match `num_channels`.
    """

    model_type = "ccsegformer"

    attention: str | list[str] | tuple[str, ...] = "criss_cross"
    recurrence: int = 1
    projection: str = "multi_head"
    lepe: bool = True
    band_means: list[float] | tuple[float, ...] | None = None
    band_stds: list[float] | tuple[float, ...] | None = None
    scene_bands: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the values that SegFormer's own configuration does not check."""
        super().__post_init__(**kwargs)
        stages = self.stage_attention
        if len(stages) != self.num_encoder_blocks or not set(stages) <= set(ATTENTIONS):
            raise ValueError(
                f"attention must be one of {', '.join(ATTENTIONS)}, or a list of "
                f"{self.num_encoder_blocks} of these, not {self.attention!r}"
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
        if self.num_labels < 1:
            raise ValueError(f"num_labels must be at least 1, not {self.num_labels}")
        if "criss_cross" in stages and self.attention_probs_dropout_prob:
            raise ValueError("criss-cross attention has no dropout: attention_probs_dropout_prob must be 0")
        if (self.band_means is None) != (self.band_stds is None):
            raise ValueError("band_means and band_stds must both be given or both be None")
        if self.band_means is not None and self.band_stds is not None:
            counts = len(self.band_means), len(self.band_stds)
            if counts != (self.num_channels, self.num_channels) or min(self.band_stds) <= 0:
                raise ValueError(
                    f"band_means and band_stds must be {self.num_channels} numbers each, "
                    "and band_stds positive"
                )

        bands = self.scene_bands
        if bands is not None and (
            len(bands) != self.num_channels or len({*bands}) < len(bands) or min(bands) < 1
        ):
            raise ValueError(
                f"scene_bands must be {self.num_channels} different numbers from 1, not {bands!r}"
            )

    @property
    def stage_attention(self) -> tuple[str, ...]:
        """Name of the attention in each stage."""
        if isinstance(self.attention, str):
            return (self.attention,) * self.num_encoder_blocks
        return tuple(self.attention)

    @property
    def published_size(self) -> str | None:
        """Name of the published size with these widths and depths, "b0" to "b5", or None."""
        own = tuple(self.hidden_sizes), tuple(self.depths)
        return next((size for size, (*known, _) in _MIT.items() if tuple(known) == own), None)

    @classmethod
    def mit(cls, size: str, **overrides: Any) -> Self:
        """Return the published configuration of a size, "b0" to "b5".

        Args:
            size: Name of the size.
            overrides: Other values, such as `num_labels=150`.

        Raises:
            ValueError: The size is unknown, or an override is invalid.
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
        """Create a configuration from a saved one. One of ours without `lepe` dates from before LePE."""
        if config_dict.get("model_type") == cls.model_type:
            config_dict = {"lepe": False, **config_dict}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the dictionary to save: SegFormer's own if every stage has efficient attention."""
        output = super().to_dict()
        if set(self.stage_attention) == {"efficient"}:
            output["model_type"] = SegformerConfig.model_type
            if output.get("architectures"):
                output["architectures"] = [
                    name.removeprefix("CrissCross") for name in output["architectures"]
                ]
        return output
