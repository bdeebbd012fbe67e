"""SegFormer with a choice of attention per stage. Importing this registers the Auto classes."""

from ccsegformer.models.checkpoints import LoadSummary
from ccsegformer.models.configuration_ccsegformer import CrissCrossSegformerConfig
from ccsegformer.models.modeling_ccsegformer import (
    CrissCrossSegformerForSemanticSegmentation,
    CrissCrossSegformerModel,
    load_pretrained,
    load_trained,
)

__all__ = [
    "CrissCrossSegformerConfig",
    "CrissCrossSegformerForSemanticSegmentation",
    "CrissCrossSegformerModel",
    "LoadSummary",
    "load_pretrained",
    "load_trained",
]
