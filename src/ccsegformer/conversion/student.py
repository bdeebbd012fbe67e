"""The network that a teacher becomes, and what passes through the attention of both."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ccsegformer.errors import CheckpointError
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation
from ccsegformer.models.attention import CONTROL
from ccsegformer.models.attention.criss_cross import CrissCrossAttention
from ccsegformer.models.attention.efficient import EfficientSelfAttention

TARGETS = ("criss_cross", CONTROL)
"""Attentions that efficient attention can become."""


class Block(NamedTuple):
    """The attention of a block before and after the conversion.

    Attributes:
        name: "stage 1, block 1" for the first.
        teacher: Efficient attention.
        student: Criss-cross attention.
    """

    name: str
    teacher: EfficientSelfAttention
    student: CrissCrossAttention


class Passed(NamedTuple):
    """What an attention was given, tokens (batch, height * width, C), and what it returned."""

    tokens: Tensor
    height: int
    width: int
    output: Tensor


def build_student(
    teacher: CrissCrossSegformerForSemanticSegmentation, attention: str | Sequence[str], name: str = "model"
) -> CrissCrossSegformerForSemanticSegmentation:
    """Build the network with another attention in some stages, and copy every weight that both have.

    Args:
        teacher: Trained model.
        attention: Attention of all stages, or of each.
        name: What messages call the teacher.

    Raises:
        CheckpointError: No stage changes, or one has an attention that cannot be converted.
    """
    config = _student_config(teacher.config, attention, name)
    weight = next(teacher.parameters())
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # for weights that are overwritten
        student = CrissCrossSegformerForSemanticSegmentation(config)
    student.load_state_dict(teacher.state_dict(), strict=False)
    return student.to(weight).eval()


def attention_blocks(
    teacher: CrissCrossSegformerForSemanticSegmentation, student: CrissCrossSegformerForSemanticSegmentation
) -> list[Block]:
    """Return the attentions that change from efficient to criss-cross, from the first block to the last."""
    return [
        Block(f"stage {number}, block {index}", before.attention, after.attention)
        for number, stages in enumerate(
            zip(teacher.segformer.stages, student.segformer.stages, strict=True), start=1
        )
        for index, (before, after) in enumerate(
            zip(*(stage.blocks for stage in stages), strict=True), start=1
        )
        if before.has_attention
        and after.has_attention
        and isinstance(before.attention, EfficientSelfAttention)
        and isinstance(after.attention, CrissCrossAttention)
    ]


@torch.no_grad()
def watch(model: nn.Module, modules: Sequence[nn.Module], pixels: Tensor) -> list[Passed]:
    """Run a model on pixels (batch, bands, H, W) and return what passed through some of its attentions."""
    with _recorded(modules) as seen:
        model(pixels)
    return [seen[module] for module in modules]


@contextmanager
def _recorded(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Passed]]:
    seen: dict[nn.Module, Passed] = {}

    def record(module: nn.Module, given: tuple[Any, ...], returned: tuple[Any, ...]) -> None:
        tokens, height, width = given
        seen[module] = Passed(tokens, height, width, returned[0])

    hooks = [module.register_forward_hook(record) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _student_config(
    config: CrissCrossSegformerConfig, attention: str | Sequence[str], name: str
) -> CrissCrossSegformerConfig:
    """Return the configuration of the student."""
    own = config.stage_attention
    wanted = (attention,) * len(own) if isinstance(attention, str) else tuple(attention)
    if len(wanted) != len(own):
        raise CheckpointError(f"attention: {len(wanted)} names for the {len(own)} stages of {name}")
    for stage, (old, new) in enumerate(zip(own, wanted, strict=True), start=1):
        if old != new and (old != "efficient" or new not in TARGETS):
            raise CheckpointError(
                f"{name}: {old} attention in stage {stage} cannot become {new}; only efficient attention is "
                f"converted, to {' or '.join(TARGETS)}"
            )
    if wanted == own:
        raise CheckpointError(f"{name}: nothing to convert: its attention is {', '.join(own)} already")
    if "criss_cross" in own and (config.recurrence, config.projection) != (1, "multi_head"):
        raise CheckpointError(
            f"{name}: its criss-cross attention has recurrence {config.recurrence} and projection "
            f"{config.projection}; only 1 and multi_head can be extended to other stages"
        )
    values = {**copy.deepcopy(config).to_dict(), "model_type": config.model_type}
    changed = {"recurrence": 1, "projection": "multi_head", "lepe": True, "attention": list(wanted)}
    return type(config).from_dict({**values, **changed, "attention_probs_dropout_prob": 0.0})
