"""The fifteen ways in which the report's published notebook differs from its text, one function each.

D1 to D11 and D15 change the training, D12 to D14 the scoring; D6 changes both. The docstrings of the
functions are rows of the study's table.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ccsegformer.data.labels import Classes
from ccsegformer.models.layer import CrissCrossSegformerLayer
from ccsegformer.training.freezing import freeze
from studies.harness import Model, Plan


@dataclass(frozen=True)
class Experiment:
    """A training and its scoring; the defaults score as the report describes.

    Attributes:
        in_training_mode: D12, score with dropout and batch statistics active.
        per_image: D13, average each image's own mIoU.
        checkpoint: "end", or "half" for D14.
    """

    plan: Plan
    in_training_mode: bool = False
    per_image: bool = False
    checkpoint: str = "end"


class ScrambledLayout(nn.Module):
    """D1: read (batch, N, C) tokens as if they were (batch, C, H, W), and write them back the same way."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, tokens: Tensor, height: int, width: int, **_: Any) -> tuple[Tensor, None]:
        """Map (batch, H W, C) to the same shape."""
        batch, positions, channels = tokens.shape
        scrambled = tokens.reshape(batch, channels, positions).transpose(1, 2)
        attended, _weights = self.attention(scrambled, height, width)
        return attended.transpose(1, 2).reshape(batch, positions, channels), None


class SecondResidual(nn.Module):
    """D2: add the layer-normed input to gamma times the attention; gamma is learned and starts at 0."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor, height: int, width: int, **_: Any) -> tuple[Tensor, None]:
        """Map (batch, H W, C) to the same shape."""
        return self.gamma * self.attention(tokens, height, width)[0] + tokens, None


def wrap_attention(wrapper: Callable[[nn.Module], nn.Module]) -> Callable[[Model], None]:
    """Return an edit that wraps the attention of every block."""

    def edit(model: Model) -> None:
        for block in model.modules():
            if isinstance(block, CrissCrossSegformerLayer):
                block.attention = wrapper(block.attention)

    return edit


_scramble, _add_input = wrap_attention(ScrambledLayout), wrap_attention(SecondResidual)


def _fix_gamma(model: Model) -> None:
    """Hold CCNet's gamma at 1; the gamma that starts at 0 is D2's."""
    for name, parameter in model.named_parameters():
        if name.endswith("attention.gamma"):
            nn.init.ones_(parameter).requires_grad_(False)


def _freeze_as_reported(model: Model) -> None:
    held = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    freeze(model, "report", None)
    for name in held:
        model.get_parameter(name).requires_grad_(False)


def _other_is_a_class(mask: Tensor, classes: Classes) -> Tensor:
    return torch.where(mask == classes.ignore_index, 0, mask.int() + 1)


def _has_color(image: Tensor) -> bool:
    return bool((image[0] != image[1]).any() or (image[1] != image[2]).any())


def change_plan(experiment: Experiment, **changes: Any) -> Experiment:
    """Return the experiment with a changed plan."""
    return replace(experiment, plan=replace(experiment.plan, **changes))


def _augment(experiment: Experiment, **changes: bool) -> Experiment:
    return change_plan(experiment, augment=replace(experiment.plan.augment, **changes))  # type: ignore[type-var]


def defect_d1(experiment: Experiment) -> Experiment:
    """Tokens are reshaped to a feature map without a transpose."""
    return change_plan(experiment, edits=(*experiment.plan.edits, _scramble))


def defect_d2(experiment: Experiment) -> Experiment:
    """The attention adds its own layer-normed input."""
    return change_plan(experiment, edits=(_add_input, *experiment.plan.edits))


def defect_d3(experiment: Experiment) -> Experiment:
    """One head, C/8 channels in queries and keys, no scale, no output projection."""
    overrides = (*experiment.plan.overrides, ("projection", "ccnet"))
    return change_plan(experiment, overrides=overrides, edits=(_fix_gamma, *experiment.plan.edits))


def defect_d4(experiment: Experiment) -> Experiment:
    """Everything is frozen except the attention and the decode head."""
    return change_plan(experiment, freeze=_freeze_as_reported)


def defect_d5(experiment: Experiment) -> Experiment:
    """The head has ImageNet's 1,000 classes."""
    return change_plan(experiment, outputs=1000)


def defect_d6(experiment: Experiment, classes: Classes) -> Experiment:
    """Ignored pixels are class 0, ids are off by one, and the last class is never scored."""
    outputs = experiment.plan.outputs or len(classes) + 1
    return change_plan(experiment, relabel=_other_is_a_class, outputs=outputs)


def defect_d7(experiment: Experiment) -> Experiment:
    """One coin for the whole chain of transforms, and a second one in the inversion."""
    return _augment(experiment, one_coin=True)


def defect_d8(experiment: Experiment) -> Experiment:
    """Images are flipped and cropped, masks are not."""
    return _augment(experiment, masks_stay=True)


def defect_d9(experiment: Experiment) -> Experiment:
    """Crops by area instead of resizing, and every image squashed to a square."""
    return _augment(experiment, area_crops=True)


def defect_d10(experiment: Experiment) -> Experiment:
    """A new trainer every epoch: sixteen schedules that end at 0, and sixteen optimizers."""
    return change_plan(experiment, trainers=16)


def defect_d11(experiment: Experiment) -> Experiment:
    """Batches of one image, four of them accumulated."""
    plan = experiment.plan
    return change_plan(experiment, batch_size=1, accumulation=plan.batch_size * plan.accumulation)


def defect_d12(experiment: Experiment) -> Experiment:
    """Scored in training mode."""
    return replace(experiment, in_training_mode=True)


def defect_d13(experiment: Experiment) -> Experiment:
    """The mean over images of each image's own mIoU."""
    return replace(experiment, per_image=True)


def defect_d14(experiment: Experiment) -> Experiment:
    """The weights from half-way through the training."""
    return replace(experiment, checkpoint="half")


def defect_d15(experiment: Experiment) -> Experiment:
    """Greyscale photographs are left out."""
    return change_plan(experiment, admit=_has_color)


def all_defects(classes: Classes) -> dict[str, Callable[[Experiment], Experiment]]:
    """Return the defects by name, in the order in which they are combined into the notebook."""

    def d6(experiment: Experiment) -> Experiment:
        return defect_d6(experiment, classes)

    d6.__doc__ = defect_d6.__doc__
    before = [defect_d1, defect_d2, defect_d3, defect_d4, defect_d5]
    after = [defect_d7, defect_d8, defect_d9, defect_d10, defect_d11]
    scoring = [defect_d12, defect_d13, defect_d14, defect_d15]
    return {f"D{number}": defect for number, defect in enumerate([*before, d6, *after, *scoring], start=1)}
