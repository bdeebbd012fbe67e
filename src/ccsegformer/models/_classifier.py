"""Fit a loaded classifier to other class names of the same number."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ccsegformer.config.class_names import comparable_names

CLASSIFIER_STD = 0.01
"""Standard deviation of new weights of a classifier, as in the authors' code."""


def match_classifier(model: PreTrainedModel, saved_id2label: Mapping[Any, str]) -> tuple[str, bool]:
    """Give each class the weights that the checkpoint has for its name; the others get new random ones.

    Names are compared without case and outer blanks. Names that say nothing, such as LABEL_0 or 1, count as
    unknown; if all names of either side are, the classifier stays as it was loaded.

    Args:
        model: Model with the checkpoint's decode head and its own `config.id2label`.
        saved_id2label: Class names of the checkpoint by label.

    Returns:
        What was done, or "" if the names are the same or unknown to the model; whether all of it is new.
    """
    names = [model.config.id2label[label] for label in range(model.config.num_labels)]
    saved = [
        str(saved_id2label.get(label, saved_id2label.get(str(label), ""))) for label in range(len(names))
    ]
    ours, theirs = comparable_names(names), comparable_names(saved)
    if ours == theirs or not any(ours):
        return "", False
    if not any(theirs):
        return "classifier kept: the checkpoint does not name its classes", False
    counts = Counter(theirs)
    sources = [
        label
        if name and theirs[label] == name
        else theirs.index(name)
        if name and counts[name] == 1
        else None
        for label, name in enumerate(ours)
    ]
    _rearrange(model, sources)
    anew = [name for name, source in zip(names, sources, strict=True) if source is None]
    kept = len(names) - len(anew)
    if not kept:
        return "classifier made anew: the checkpoint has other classes, such as " + repr(saved[0]), True
    new = f", {len(anew)} made anew: {_some(anew)}" if anew else ""
    return f"classifier: {kept} class{'es' * (kept > 1)} kept by name{new}", False


def _rearrange(model: PreTrainedModel, sources: Sequence[int | None]) -> None:
    """Take row `sources[i]` of the classifier for row i, or new weights where that is None."""
    classifier: Any = model.decode_head.classifier
    weight, bias = classifier.weight.detach().clone(), classifier.bias
    old_bias = None if bias is None else bias.detach().clone()
    with torch.no_grad():
        for label, source in enumerate(sources):
            if source is None:
                classifier.weight[label].normal_(std=CLASSIFIER_STD)
            else:
                classifier.weight[label] = weight[source]
            if old_bias is not None:
                bias[label] = 0 if source is None else old_bias[source]


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
