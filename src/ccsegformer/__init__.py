"""SegFormer for large images: Efficient Self-Attention or criss-cross attention in every stage."""

from importlib import import_module
from typing import Any

from ccsegformer.errors import optional_imports

__version__ = "0.1.0"

# Names are imported on first use, so that importing the package is fast.
_HOMES = {
    "CCSegformerError": "ccsegformer.errors",
    "CrissCrossSegformerConfig": "ccsegformer.models",
    "CrissCrossSegformerForSemanticSegmentation": "ccsegformer.models",
    "compare": "ccsegformer.lab.comparison",
    "criss_cross_attention": "ccsegformer.ops",
    "evaluate": "ccsegformer.evaluation.evaluate",
    "load_model": "ccsegformer.labelling.loading",
    "load_recipe": "ccsegformer.training.recipe",
    "map_scenes": "ccsegformer.archives.run",
    "open_dataset": "ccsegformer.sources",
    "predict_labels": "ccsegformer.labelling.labeller",
    "predict_scene": "ccsegformer.labelling.scene",
    "train": "ccsegformer.training.trainer",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with optional_imports(f"ccsegformer.{name}"):
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
