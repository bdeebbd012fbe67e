"""Loading SegFormer weights, with an account of what was loaded, newly made or dropped."""

import copy
import dataclasses
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from ccsegformer.models.configuration_ccsegformer import CrissCrossSegformerConfig

_FINDING = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
_OVERRIDES = (
    {field.name for field in dataclasses.fields(CrissCrossSegformerConfig)}
    - {field.name for field in dataclasses.fields(PretrainedConfig)}
) | {"num_labels", "id2label", "label2id"}

# transformers renames the keys that SegFormer checkpoints have on the hub for its own classes alone.
for _ours in ("CrissCrossSegformerModel", "CrissCrossSegformerForSemanticSegmentation"):
    _theirs = _ours.removeprefix("CrissCross")
    register_checkpoint_conversion_mapping(_ours, get_checkpoint_conversion_mapping(_theirs), overwrite=True)


@dataclasses.dataclass(frozen=True)
class LoadSummary:
    """What became of each parameter and buffer, by name, sorted.

    Attributes:
        source: the checkpoint.
        loaded: taken from the checkpoint.
        new: made afresh, at random or, where that is how it begins, at 0.
        dropped: in the checkpoint, and of no use to the model.
        new_attention: stages, from 0, whose kind of attention the checkpoint did not have, even where its
            projections were taken over.
        adapted: how weights for the checkpoint's bands became those for other ones; "" where nothing did.
    """

    source: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    new_attention: tuple[int, ...]
    adapted: str = ""

    def table(self) -> str:
        """One short table: a line for each fate and kind of module."""
        lines = [
            f"{self.source}: {len(self.loaded)} loaded, {len(self.new)} new, {len(self.dropped)} dropped"
        ]
        for fate in ("new", "dropped"):
            modules = (re.sub(r"\.\d+", ".*", name.rpartition(".")[0]) for name in getattr(self, fate))
            lines += [f"  {fate:<8}{count:>4}  {module}" for module, count in Counter(modules).items()]
        if self.adapted:
            lines.append(f"  adapted     1  {self.adapted}")
        return "\n".join(lines)


def load_checkpoint(from_pretrained: Callable[..., Any], name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
    """`from_pretrained` with overrides, strictness and a summary; see the model's `from_pretrained`."""
    if name_or_path is None:  # transformers' way to build a model from a state dict in memory
        return from_pretrained(name_or_path, *args, **kwargs)
    saved = saved_config(name_or_path, {key: kwargs[key] for key in _FINDING if key in kwargs})
    overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in _OVERRIDES}
    rgb_bands = kwargs.pop("rgb_bands", None)
    config = kwargs.pop("config", None)
    if config is None or overrides:
        config = _override(config.to_dict() if config is not None else saved, overrides, name_or_path)
    wanted = config
    if config.num_channels != saved.get("num_channels", 3):  # loaded as it is, and adapted afterwards
        config = copy.deepcopy(config)
        config.num_channels, config.band_means, config.band_stds = saved.get("num_channels", 3), None, None
    wants_information = kwargs.pop("output_loading_info", False)
    kwargs["use_safetensors"] = True
    try:
        with _quiet():
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
    summary = _account(model, information, saved, str(name_or_path))
    if config is not wanted:
        summary = dataclasses.replace(summary, adapted=_adapt_bands(model, wanted.num_channels, rgb_bands))
        for key in ("num_channels", "band_means", "band_stds"):
            setattr(model.config, key, getattr(wanted, key))
    if (summary.new or summary.dropped or summary.adapted) and os.environ.get("RANK", "0") == "0":
        print(summary.table(), file=sys.stderr)
    return (model, {**information, "summary": summary}) if wants_information else model


def with_current_names(model: PreTrainedModel, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the model's own names, whether it comes with those or with the hub's older ones."""
    renamings = get_model_conversion_mapping(model, add_legacy=False)
    return {apply_renamings(name, renamings): tensor for name, tensor in state_dict.items()}


def saved_config(name_or_path: Any, finding: dict[str, Any]) -> dict[str, Any]:
    """The configuration as it was saved, of a SegFormer or of one of ours.

    Raises:
        CheckpointError: nothing there, not JSON, or another architecture.
    """
    try:
        saved, _ = PretrainedConfig.get_config_dict(name_or_path, **finding)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name_or_path}: no model to load: {_first_line(error)}") from error
    known = (SegformerConfig.model_type, CrissCrossSegformerConfig.model_type)
    model_type = saved.get("model_type") if isinstance(saved, dict) else None
    if model_type not in known:
        raise CheckpointError(
            f"{name_or_path}: config.json has the model_type {model_type!r}, not {' or '.join(known)}"
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


def _account(model: Any, information: dict[str, Any], saved: dict[str, Any], source: str) -> LoadSummary:
    """The summary, or an error when something is missing, superfluous or misshapen without a reason."""
    missing = set(information["missing_keys"])
    unexpected = set(information["unexpected_keys"])
    misshapen = {name: (theirs, ours) for name, theirs, ours in information["mismatched_keys"]}
    everything = set(model.state_dict())
    loaded = everything - missing - set(misshapen)
    changed = _stages_that_attend_otherwise(saved, model.config)
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
        of_a_head = name.startswith("classifier.") or (name.startswith("decode_head.") and not model_has_head)
        if not explained(name) and not of_a_head:
            raise CheckpointError(f"{source}: the weights hold {name}, which the model lacks")
    other_labels = _label_count(saved) != model.config.num_labels
    for name, (theirs, ours) in sorted(misshapen.items()):
        if not explained(name) and not (name.startswith("decode_head.classifier.") and other_labels):
            raise CheckpointError(
                f"{source}: {name} is {tuple(theirs)} in the weights, {tuple(ours)} in the model"
            )
    return LoadSummary(
        source,
        loaded=tuple(sorted(loaded)),
        new=tuple(sorted(missing | set(misshapen))),
        dropped=tuple(sorted(unexpected)),
        new_attention=tuple(sorted(changed)),
    )


def _adapt_bands(model: PreTrainedModel, bands: int, rgb: tuple[int, int, int] | None) -> str:
    """Make the first convolution take `bands` channels, and say how.

    Three channels become those of the bands that are red, green and blue, and the others begin at 0. Where
    it is not known which these are, every band gets the channels' mean, scaled so that equal bands give what
    equal channels gave.
    """
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    channels = first.in_channels
    weight = first.weight.new_zeros(first.out_channels, bands, *first.kernel_size)
    if rgb is not None and channels == 3:
        weight[:, list(rgb)] = first.weight.detach()
        how = f"red, green and blue for bands {', '.join(str(band + 1) for band in rgb)}, 0 for the others"
    else:
        weight += first.weight.detach().mean(dim=1, keepdim=True) * (channels / bands)
        how = f"each band has the channels' mean, times {channels}/{bands}"
    first.in_channels, first.weight = bands, nn.Parameter(weight)
    return f"first convolution, of {channels} channels to {bands} bands: {how}"


def _stages_that_attend_otherwise(saved: dict[str, Any], config: CrissCrossSegformerConfig) -> set[int]:
    """Stages with another kind of attention than they had in the checkpoint."""
    attention = saved_attention(saved)
    before = [attention] * len(config.depths) if isinstance(attention, str) else attention
    same_projection = saved.get("projection", "multi_head") == config.projection
    return {
        stage
        for stage, (old, new) in enumerate(zip(before, config.stage_attention, strict=True))
        if old != new or (new == "criss_cross" and not same_projection)
    }


def saved_attention(saved: dict[str, Any]) -> str | list[str]:
    """The attention that a checkpoint was trained with: SegFormer's own, unless it says otherwise."""
    return saved.get("attention", "efficient")


def _label_count(saved: dict[str, Any]) -> int:
    return len(saved.get("id2label") or ()) or saved.get("num_labels") or 2


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own, longer account of the same to itself, and its progress bar."""
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
