"""Scores of a model on a data set, at the original resolution of every image."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader

from ccsegformer.data.folder import LabelledImages, Sample
from ccsegformer.data.stream import MINIMUM_SIDE, pad_to, plain_data_errors
from ccsegformer.data.transforms import normalize
from ccsegformer.errors import DataError
from ccsegformer.evaluation.confusion import Metrics, compute_metrics, confusion_matrix
from ccsegformer.evaluation.upsampling import upsampled_argmax
from ccsegformer.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_MEGAPIXELS = 36  # of an image that goes through the network in one piece


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on `images` images, and how they were taken."""

    metrics: Metrics
    images: int
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The scores, the number of images and the protocol, as `metrics.json` holds them."""
        return {**self.metrics.to_dict(), "images": self.images, "protocol": self.protocol}


@torch.inference_mode()
def predict_labels(model: "PreTrainedModel", image: torch.Tensor, *, name: str = "image") -> torch.Tensor:
    """Label every pixel of an 8-bit RGB image (3, H, W), in evaluation mode and on the model's device.

    The whole image goes through the network once and its logits are resized to H x W, where the best class is
    taken. A side below 32 pixels is padded to that.

    Returns:
        Labels (H, W) on the CPU: uint8, or int32 for more than 256 classes.

    Raises:
        DataError: an image of more than 36 megapixels; the message calls it `name`.
    """
    height, width = image.shape[1:]
    if height * width > MAX_MEGAPIXELS * 1_000_000:
        raise DataError(
            f"{name}: {width}x{height} is {height * width / 1_000_000:.1f} megapixels, and an image in one "
            f"piece may have {MAX_MEGAPIXELS}; cut it into smaller ones"
        )
    parameter = next(model.parameters())
    pixels = pad_to(normalize(image.to(parameter.device)), MINIMUM_SIDE, MINIMUM_SIDE, 0)
    with evaluation_mode(model):
        logits = model(pixel_values=pixels[None].to(parameter.dtype)).logits
    return upsampled_argmax(logits, *pixels.shape[1:])[:height, :width].cpu()


def evaluate(
    model: "PreTrainedModel",
    dataset: LabelledImages,
    *,
    device: str | torch.device | None = None,
    workers: int = 0,
    on_image: Callable[[str, torch.Tensor], None] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Score a model by one confusion matrix over all images, each at its original resolution.

    Images are read and forgotten one by one, so memory does not grow with their number. The model is in
    evaluation mode meanwhile, and afterwards in the mode it had. Where torch.distributed is initialised,
    every process takes its share of the images and returns the scores of all.

    Args:
        model: gives `logits` (1, K, h, w) for `pixel_values` (1, 3, H, W), K being the number of classes.
        dataset: images and masks.
        device: moves the model there first; by default it stays where it is.
        workers: processes that read images ahead; 0 reads in this one.
        on_image: called with the name and the confusion matrix of each image of this process.
        progress: show a progress bar, in the first process.

    Raises:
        DataError: the model has other classes than the data, an image or mask cannot be used, or no pixel
            of the whole set is labelled.
    """
    classes = dataset.classes
    if model.config.num_labels != len(classes):
        raise DataError(
            f"the model has {model.config.num_labels} classes, but the data set has {len(classes)}"
        )
    if device is not None:
        model.to(device)
    parameter = next(model.parameters())
    rank, world = (dist.get_rank(), dist.get_world_size()) if _is_distributed() else (0, 1)
    share = range(rank, len(dataset), world)
    loader: DataLoader[Sample] = DataLoader(
        dataset,  # type: ignore[arg-type]
        sampler=share,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # or it would draw from the global one
    )
    samples = track(loader, "Scoring", total=len(share), disable=not progress or rank > 0, transient=True)
    total = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    with plain_data_errors(), evaluation_mode(model):
        for sample in samples:
            prediction = predict_labels(model, sample["image"], name=sample["name"])
            matrix = confusion_matrix(sample["mask"], prediction, len(classes), classes.ignore_index)
            total += matrix
            if on_image is not None:
                on_image(sample["name"], matrix)
    if world > 1:
        total = total.to(parameter.device)
        dist.all_reduce(total)
    protocol = {
        "inference": "whole image, one scale",
        "resolution": "original; logits resized bilinearly before argmax",
        "mean_iou": "one confusion matrix over all images; classes present in truth or prediction",
        "devkit_mean_iou": "the same matrix; all classes, an absent one scores 0",
        "ignore_index": classes.ignore_index,
        "precision": str(parameter.dtype).removeprefix("torch."),
        "device": parameter.device.type,
    }
    return Evaluation(compute_metrics(total.cpu(), classes.names), len(dataset), protocol)


def write_metrics(evaluation: Evaluation, path: str | Path) -> None:
    """Write `metrics.json`, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(
        path, json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _unchanged(sample: Any) -> Any:
    return sample
