"""A small training loop and a scoring pass for the studies, in which everything can be varied.

The package's own `train` cannot be made to do it wrong, which is what the studies need. Model, stream,
transforms and confusion matrix are the package's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Mask
from transformers import Adafactor, get_linear_schedule_with_warmup

from ccsegformer.config.protocol import WindowSection
from ccsegformer.data.labels import Classes
from ccsegformer.data.pixels import normalize
from ccsegformer.data.stream import TrainingStream, collate
from ccsegformer.evaluation.confusion import confusion_matrix
from ccsegformer.labelling.engine import Engine, evaluation_mode
from ccsegformer.labelling.resize import upsampled_argmax
from ccsegformer.labelling.test_time_augmentation import slide
from ccsegformer.models import CrissCrossSegformerConfig, CrissCrossSegformerForSemanticSegmentation

Model = CrissCrossSegformerForSemanticSegmentation
Matrices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class Plan:
    """One training run: the model, its initial weights, its data and its optimisation.

    Attributes:
        augment: Called with an image, its mask and a generator, like the package's transforms.
        steps: Optimizer steps.
        overrides: Arguments for `CrissCrossSegformerConfig.mit("b0", ...)`.
        edits: Functions that change the new model in place, applied in order.
        keep: Whether to take a tensor, by name, from the trained efficient model; None: from scratch.
        freeze: Function that sets `requires_grad`.
        relabel: Function that returns new labels for a mask, for training and scoring.
        outputs: Number of outputs of the model; None: one per class.
        admit: Whether to train on an image.
        shrink: Factor by which images are shrunk first. Scores stay at the original resolution.
        batch_size: Images in a micro-batch.
        accumulation: Micro-batches in a step.
        trainers: Number of times that optimizer and schedule start anew, spread over the run.
        warmup_steps: Steps of warm-up after each start.
        learning_rate: Peak learning rate.
        factor: Learning rate multiplier of a parameter, by name.
    """

    augment: Callable[..., Any]
    steps: int
    overrides: tuple[tuple[str, Any], ...] = ()
    edits: tuple[Callable[[Model], None], ...] = ()
    keep: Callable[[str], bool] | None = None
    freeze: Callable[[Model], None] | None = None
    relabel: Callable[[Tensor, Classes], Tensor] | None = None
    outputs: int | None = None
    admit: Callable[[Tensor], bool] | None = None
    shrink: int = 1
    batch_size: int = 4
    accumulation: int = 1
    trainers: int = 1
    warmup_steps: int = 0
    learning_rate: float = 1e-3
    factor: Callable[[str], float] | None = None


class Admitted:
    """The samples of a data set that a plan trains on, shrunk and relabelled by it."""

    def __init__(self, dataset: Any, plan: Plan) -> None:
        self.dataset, self.plan = dataset, plan
        self.classes: Classes = dataset.classes
        everything = range(len(dataset))
        self.indices = [i for i in everything if plan.admit is None or plan.admit(dataset[i]["image"])]
        self.names = [dataset.names[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        """Return a sample of the data set, shrunk and relabelled."""
        sample = self.dataset[self.indices[index]]
        image, mask = _smaller(sample["image"], self.plan.shrink), sample["mask"]
        if self.plan.relabel is not None:
            mask = Mask(self.plan.relabel(mask, self.classes))
        mask = F.resize(mask, list(image.shape[1:]), F.InterpolationMode.NEAREST_EXACT)
        return {**sample, "image": image, "mask": mask}


def _smaller(image: Tensor, times: int) -> Tensor:
    return F.resize(image, [side // times for side in image.shape[1:]])


def build(plan: Plan, classes: Classes, seed: int, trained: Mapping[str, Tensor] | None) -> Model:
    """Build the model as it is before its first step; `trained` is the efficient model's state dict."""
    torch.manual_seed(seed)
    overrides = {"attention": "criss_cross", "lepe": False, **dict(plan.overrides)}
    config = CrissCrossSegformerConfig.mit(
        "b0",
        num_labels=plan.outputs or len(classes),
        semantic_loss_ignore_index=classes.ignore_index,
        **overrides,
    )
    model = Model(config)
    for edit in plan.edits:
        edit(model)
    if plan.keep is not None:
        assert trained is not None, "this plan starts from the weights of a trained model"
        own = model.state_dict()
        model.load_state_dict(own | {name: trained[name] for name in own if plan.keep(name)})
    if plan.freeze is not None:
        plan.freeze(model)
    return model


def train(model: Model, dataset: Any, plan: Plan, seed: int) -> Iterator[int]:
    """Train in place; yield the number of each finished step, so that the caller can save in between."""
    micro_batches = plan.steps * plan.accumulation
    admitted = Admitted(dataset, plan)
    chain: list[Any] = [plan.augment]
    stream = TrainingStream(admitted, chain, seed=seed, length=micro_batches * plan.batch_size)
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(plan.factor(name) if plan.factor else 1.0, []).append(parameter)
    trained = [parameter for group in groups.values() for parameter in group]
    bounds = [round(part * plan.steps / plan.trainers) for part in range(plan.trainers + 1)]
    model.train()
    sample = 0
    for first, last in pairwise(bounds):
        optimizer = Adafactor(
            [{"params": group, "lr": plan.learning_rate * factor} for factor, group in groups.items()],
            lr=plan.learning_rate,
            scale_parameter=False,
            relative_step=False,
        )
        schedule = get_linear_schedule_with_warmup(optimizer, plan.warmup_steps, last - first)
        for step in range(first + 1, last + 1):
            for _ in range(plan.accumulation):
                samples = [stream[sample + index] for index in range(plan.batch_size)]
                batch = collate(samples, dataset.classes.ignore_index)
                sample += plan.batch_size
                (model(**batch).loss / plan.accumulation).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            yield step


@torch.inference_mode()
def score(
    model: Model, dataset: Any, plan: Plan, *, in_training_mode: bool = False, window: int | None = None
) -> Matrices:
    """Return an int64 confusion matrix (K + 2, K + 2) for each image, at its own size, for K classes.

    Rows are the truth as relabelled by the plan, which may include label K. The last column counts all
    outputs beyond K.

    Args:
        in_training_mode: Score with dropout, stochastic depth and batch statistics active.
        window: Side of adjacent windows, in pixels; None: show the model the whole image.
    """

    network = Engine("torch", model.device, "fp32", lambda pixels: model(pixel_values=pixels).logits, None)
    classes, matrices = dataset.classes, []
    torch.manual_seed(0)  # for dropout, in training mode
    with evaluation_mode(model):
        model.train(in_training_mode)
        for index in range(len(dataset)):
            sample = dataset[index]
            truth = plan.relabel(sample["mask"], classes) if plan.relabel else sample["mask"]
            pixels = normalize(_smaller(sample["image"], plan.shrink))[None]
            windows = window and WindowSection(size=window, stride=window)
            logits = slide(network, pixels, windows) if windows else network(pixels)
            labels = upsampled_argmax(logits, *truth.shape).int().clamp(max=len(classes) + 1)
            matrices.append(confusion_matrix(truth, labels, len(classes) + 2, classes.ignore_index).numpy())
    return np.stack(matrices)


def mean_iou(matrix: Matrices, classes: int) -> float:
    """Return mIoU over those of the first `classes` labels in truth or prediction; NaN if none is."""
    hits = matrix.diagonal()[:classes]
    union = matrix.sum(axis=0)[:classes] + matrix.sum(axis=1)[:classes] - hits
    return float((hits[union > 0] / union[union > 0]).mean()) if union.any() else float("nan")
