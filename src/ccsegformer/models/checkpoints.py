"""Load SegFormer weights, and list which were loaded, newly initialised or dropped."""

import copy
import dataclasses
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, SegformerConfig
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import apply_renamings
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from ccsegformer.errors import CheckpointError
from ccsegformer.models._classifier import match_classifier
from ccsegformer.models.configuration_ccsegformer import CrissCrossSegformerConfig

_LOCATION_KEYS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_CONFIG_KEYS = (
    {field.name for field in dataclasses.fields(CrissCrossSegformerConfig)}
    - {field.name for field in dataclasses.fields(PretrainedConfig)}
) | {"num_labels", "id2label", "label2id"}

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
"""Suffixes of checkpoints that PyTorch has pickled."""

CLASSIFIER = ("decode_head.classifier.bias", "decode_head.classifier.weight")

# transformers renames the keys of SegFormer checkpoints on the hub, but only for its own classes.
for _ours in ("CrissCrossSegformerModel", "CrissCrossSegformerForSemanticSegmentation"):
    _theirs = _ours.removeprefix("CrissCross")
    register_checkpoint_conversion_mapping(_ours, get_checkpoint_conversion_mapping(_theirs), overwrite=True)


@dataclasses.dataclass(frozen=True)
class LoadSummary:
    """Which parameters and buffers came from a checkpoint, as sorted names.

    Attributes:
        source: Name or folder of the checkpoint.
        loaded: Loaded from the checkpoint.
        new: Newly initialised, at random or with their fixed initial value.
        dropped: In the checkpoint, but not used by the model.
        new_attention: Indices of the stages, from 0, whose attention differs from the checkpoint's, even if
            its projections were loaded.
        adapted: How the first convolution was adapted to other bands, or "".
        classifier: How the classifier was fitted to other class names of the same number, or "".
    """

    source: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    new_attention: tuple[int, ...]
    adapted: str = ""
    classifier: str = ""

    def table(self) -> str:
        """Return a short table with a line for each kind of module that is new or dropped."""
        lines = [
            f"{self.source}: {len(self.loaded)} loaded, {len(self.new)} new, {len(self.dropped)} dropped"
        ]
        for fate in ("new", "dropped"):
            modules = (re.sub(r"\.\d+", ".*", name.rpartition(".")[0]) for name in getattr(self, fate))
            lines += [f"  {fate:<8}{count:>4}  {module}" for module, count in Counter(modules).items()]
        if self.adapted:
            lines.append(f"  adapted     1  {self.adapted}")
        if self.classifier:
            lines.append(f"  {self.classifier}")
        return "\n".join(lines)


def load_checkpoint(from_pretrained: Callable[..., Any], name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
    """Load a model with configuration overrides, strict checks and a summary, as `from_pretrained` documents.

    Args:
        from_pretrained: transformers' own method of the model's class.
        name_or_path: Name on the hub, or folder.
        args, kwargs: Arguments of the model's `from_pretrained`.
    """
    if name_or_path is None:  # how transformers builds a model from a state dict in memory
        return from_pretrained(name_or_path, *args, **kwargs)
    saved = saved_config(name_or_path, {key: kwargs[key] for key in _LOCATION_KEYS if key in kwargs})
    overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in _CONFIG_KEYS}
    rgb_bands = kwargs.pop("rgb_bands", None)
    config = kwargs.pop("config", None)
    if config is None or overrides:
        config = _override(config.to_dict() if config is not None else saved, overrides, name_or_path)
    final = config
    if config.num_channels != saved.get("num_channels", 3):  # load as saved, then adapt
        config = copy.deepcopy(config)
        config.num_channels = saved.get("num_channels", 3)
        config.band_means = config.band_stds = config.scene_bands = None
    with_information = kwargs.pop("output_loading_info", False)
    kwargs["use_safetensors"] = True
    try:
        with _mute_transformers():
            model, information = from_pretrained(
                name_or_path,
                *args,
                config=config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **kwargs,
            )
    except OSError as error:
        raise CheckpointError(
            f"{name_or_path}: no model.safetensors (pickled weights are not read): {_first_line(error)}"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(f"{name_or_path}: damaged model.safetensors: {_first_line(error)}") from error
    summary = _summarize_load(model, information, saved, str(name_or_path))
    if config is not final:
        summary = dataclasses.replace(summary, adapted=_adapt_bands(model, final.num_channels, rgb_bands))
        for key in ("num_channels", "band_means", "band_stds", "scene_bands"):
            setattr(model.config, key, getattr(final, key))
    if "id2label" in overrides and {*CLASSIFIER} <= {*summary.loaded}:
        summary = _fit_classifier(model, saved, summary)
    if (summary.new or summary.dropped or summary.adapted or summary.classifier) and os.environ.get(
        "RANK", "0"
    ) == "0":
        print(summary.table(), file=sys.stderr)
    return (model, {**information, "summary": summary}) if with_information else model


def with_current_names(model: PreTrainedModel, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict with the hub's older names to the model's own; current names stay."""
    renamings = get_model_conversion_mapping(model, add_legacy=False)
    return {apply_renamings(name, renamings): tensor for name, tensor in state_dict.items()}


def saved_config(name_or_path: Any, location: dict[str, Any]) -> dict[str, Any]:
    """Read the saved configuration of a SegFormer or of one of our models.

    Args:
        name_or_path: Name on the hub, or folder.
        location: transformers' arguments for finding files, such as `revision`.

    Raises:
        CheckpointError: There is no configuration, it is not JSON, or it is of another architecture.
    """
    if str(name_or_path).endswith(PICKLED) and Path(name_or_path).is_file():
        raise CheckpointError(
            f"{name_or_path}: a pickled checkpoint; make it a folder with `ccsegformer convert-checkpoint "
            f"{name_or_path} --output DIR`, and give that"
        )
    try:
        saved, _ = PretrainedConfig.get_config_dict(name_or_path, **location)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name_or_path}: no model to load: {_first_line(error)}") from error
    known = (SegformerConfig.model_type, CrissCrossSegformerConfig.model_type)
    model_type = saved.get("model_type") if isinstance(saved, dict) else None
    if model_type not in known:
        raise CheckpointError(
            f"{name_or_path}: model_type in config.json must be {' or '.join(known)}, not {model_type!r}"
        )
    return saved


def _override(
    saved: dict[str, Any], overrides: dict[str, Any], name_or_path: Any
) -> CrissCrossSegformerConfig:
    values = {**saved, **overrides}
    if "id2label" in overrides:
        values.pop("num_labels", None)
        values.setdefault("label2id", None)
        if "label2id" not in overrides:
            values["label2id"] = {label: index for index, label in overrides["id2label"].items()}
    elif "num_labels" in overrides and len(saved.get("id2label") or ()) != overrides["num_labels"]:
        values["id2label"] = values["label2id"] = None
    try:
        return CrissCrossSegformerConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name_or_path}: {_first_line(error)}") from error


def _summarize_load(
    model: Any, information: dict[str, Any], saved: dict[str, Any], source: str
) -> LoadSummary:
    """Summarise what was loaded.

    Raises:
        CheckpointError: Weights are missing, unexpected or misshapen, and no override explains it.
    """
    missing = set(information["missing_keys"])
    unexpected = set(information["unexpected_keys"])
    misshapen = {name: (theirs, ours) for name, theirs, ours in information["mismatched_keys"]}
    everything = set(model.state_dict())
    loaded = everything - missing - set(misshapen)
    changed = _stages_with_new_attention(saved, model.config)
    head_is_new = not any(name.startswith("decode_head.") for name in (loaded | set(misshapen)))
    model_has_head = any(name.startswith("decode_head.") for name in everything)

    def explained(name: str) -> bool:
        if ".attention.lepe." in name and saved.get("lepe", False) != model.config.lepe:
            return True
        stage = re.search(r"stages\.(\d+)\.blocks\.\d+\.(attention|layernorm_before)\.", name)
        return stage is not None and int(stage[1]) in changed

    for name in sorted(missing):
        if not explained(name) and not (name.startswith("decode_head.") and head_is_new):
            raise CheckpointError(f"{source}: the weights lack {name}")
    for name in sorted(unexpected):
        from_a_head = name.startswith("classifier.") or (
            name.startswith("decode_head.") and not model_has_head
        )
        if not explained(name) and not from_a_head:
            raise CheckpointError(f"{source}: the weights contain {name}, which the model lacks")
    other_labels = _label_count(saved) != model.config.num_labels
    for name, (theirs, ours) in sorted(misshapen.items()):
        if not explained(name) and not (name.startswith("decode_head.classifier.") and other_labels):
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(theirs)} in the weights and {tuple(ours)} in the model"
            )
    return LoadSummary(
        source,
        loaded=tuple(sorted(loaded)),
        new=tuple(sorted(missing | set(misshapen))),
        dropped=tuple(sorted(unexpected)),
        new_attention=tuple(sorted(changed)),
    )


def _fit_classifier(model: PreTrainedModel, saved: dict[str, Any], summary: LoadSummary) -> LoadSummary:
    """Fit a loaded classifier to the model's class names."""
    done, is_new = match_classifier(model, saved.get("id2label") or {})
    if is_new:
        loaded = tuple(name for name in summary.loaded if name not in CLASSIFIER)
        summary = dataclasses.replace(summary, loaded=loaded, new=tuple(sorted({*summary.new, *CLASSIFIER})))
    return dataclasses.replace(summary, classifier=done)


def _adapt_bands(model: PreTrainedModel, bands: int, rgb: tuple[int, int, int] | None) -> str:
    """Adapt the first convolution to `bands` input channels, and return a description.

    If `rgb` names the red, green and blue bands, these keep their weights and the others start at 0.
    Otherwise every band gets the mean over the channels, scaled so that equal bands give what equal channels
    gave.
    """
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    channels = first.in_channels
    weight = first.weight.new_zeros(first.out_channels, bands, *first.kernel_size)
    if rgb is not None and channels == 3:
        weight[:, list(rgb)] = first.weight.detach()
        places = ", ".join(str(band + 1) for band in rgb)
        how = f"bands {places} take red, green and blue, the others start at 0"
    else:
        weight += first.weight.detach().mean(dim=1, keepdim=True) * (channels / bands)
        how = f"each band takes the mean over the channels, times {channels}/{bands}"
    first.in_channels, first.weight = bands, nn.Parameter(weight)
    return f"first convolution, {channels} channels to {bands} bands: {how}"


def _stages_with_new_attention(saved: dict[str, Any], config: CrissCrossSegformerConfig) -> set[int]:
    """Return the stages whose attention differs from the checkpoint's."""
    attention = saved_attention(saved)
    before = [attention] * len(config.depths) if isinstance(attention, str) else attention
    same_projection = saved.get("projection", "multi_head") == config.projection
    return {
        stage
        for stage, (old, new) in enumerate(zip(before, config.stage_attention, strict=True))
        if old != new or (new == "criss_cross" and not same_projection)
    }


def saved_attention(saved: dict[str, Any]) -> str | list[str]:
    """Return the attention that a checkpoint was trained with, which is SegFormer's own by default."""
    return saved.get("attention", "efficient")


def _label_count(saved: dict[str, Any]) -> int:
    return len(saved.get("id2label") or ()) or saved.get("num_labels") or 2


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _mute_transformers() -> Iterator[None]:
    """Suppress transformers' own loading messages and progress bar."""
    logger = logging.getLogger("transformers.modeling_utils")
    before, logger.disabled = logger.disabled, True
    has_bars = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        logger.disabled = before
        if has_bars:
            enable_progress_bar()
