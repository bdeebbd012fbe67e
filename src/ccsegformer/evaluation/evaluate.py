"""Score a model on a data set, at the original resolution of every image."""

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader

from ccsegformer.config.protocol import DEFAULT, EvaluationProtocol
from ccsegformer.data.dataset import DrawnSamples, Sample
from ccsegformer.data.labels import (
    Classes,
    check_class_order,
    classes_of_model,
    describe_one_class,
    describe_other_names,
)
from ccsegformer.data.objects import describe_object
from ccsegformer.data.stream import plain_data_errors
from ccsegformer.errors import DataError, EngineError
from ccsegformer.evaluation.bootstrap import (
    CONFIDENCE,
    FEWEST_IMAGES,
    RESAMPLES,
    Counts,
    class_counts,
    interval,
    mean_iou_from_counts,
    resample_images,
)
from ccsegformer.evaluation.confusion import Metrics, compute_metrics, confusion_matrix, mean_iou
from ccsegformer.files import digest_of, write_atomically
from ccsegformer.labelling.engine import Engine, EngineName, open_engine
from ccsegformer.labelling.labeller import predict_labels
from ccsegformer.raster.dataset import Scenes
from ccsegformer.sources import open_dataset, resolve_dataset, with_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on `images` images, with the protocol."""

    metrics: Metrics
    images: int
    protocol: dict[str, Any]
    image_iou: dict[str, float | None]
    """Mean IoU of each image, over the classes in its truth or prediction; None without a labelled pixel."""
    confusion: list[list[int]]
    """Pixels of the data set by true class (rows) and predicted class (columns)."""
    ignored_pixels: int = 0
    warning: str = ""
    """Why the scores say little, if the truth has one class only."""
    counts: Counts | None = field(default=None, compare=False)
    """Counts (images, 3, K) of each image, in order; see `class_counts`."""

    @cached_property
    def mean_iou_interval(self) -> list[float] | None:
        """95% interval [low, high] of the mean IoU, images resampled; None for fewer than 10 images."""
        if self.counts is None or len(self.counts) < FEWEST_IMAGES:
            return None
        return interval(mean_iou_from_counts(resample_images(self.counts)))

    @property
    def mean_image_iou(self) -> float:
        """Mean of the images' mean IoU; not the mean IoU of the data set."""
        known = [score for score in self.image_iou.values() if score is not None]
        return sum(known) / len(known)

    def to_dict(self) -> dict[str, Any]:
        """Return the contents of `metrics.json`: everything except the confusion matrix."""
        return {
            **self.metrics.to_dict(),
            "mean_iou_interval": self.mean_iou_interval,
            "mean_image_iou": self.mean_image_iou,
            "images": self.images,
            "protocol": self.protocol,
            "image_iou": self.image_iou,
            "ignored_pixels": self.ignored_pixels,
            **({"warning": self.warning} if self.warning else {}),
        }


def evaluate(
    model: "PreTrainedModel | Engine",
    dataset: Any,
    *,
    split: str = "validation",
    classes: Classes | Sequence[str] | None = None,
    protocol: EvaluationProtocol = DEFAULT,
    device: str | torch.device | None = None,
    engine: EngineName | None = None,
    workers: int = 0,
    on_image: Callable[[str, torch.Tensor], None] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Score a model with one confusion matrix over all images, each at its original resolution.

    Images are read one by one, so memory does not grow with their number. The model runs in evaluation mode
    and then returns to its previous mode. If torch.distributed is initialised, each process takes a share of
    the images, and all return the scores of the whole data set. A truth of one class, and other class
    names in the model than in the data, are said on stderr.

    Args:
        model: Model that returns `logits` (1, K, h, w) for `pixel_values` (1, bands, H, W) and K classes, or
            an engine that runs one in the protocol's precision.
        dataset: A name for `open_dataset`, or a data set object (see `as_dataset`).
        split: Split to open by name.
        classes: Classes of a data set object, or their names; by default its `classes`, else the model's.
        protocol: How images are presented to the model.
        device: Device to move the model to; by default it stays where it is.
        engine: Engine that runs the model; see `open_engine`.
        workers: Processes that read images ahead; 0 reads in this process.
        on_image: Callback taking the name and the confusion matrix of each image of this process.
        progress: Show a progress bar in the first process.

    Raises:
        DataError: The model has a different number of classes, the data cannot be used, or no pixel of the
            data set is labelled.
        EngineError: The engine cannot run the model, or the logits of an image are not finite.
    """
    if device is not None:
        if not isinstance(model, nn.Module):
            raise EngineError(f"device={device}: only a module can be moved, not a {type(model).__name__}")
        model.to(device)
    opened = open_engine(model, engine, protocol.precision)
    default = _model_classes(opened.config or getattr(model, "config", None))
    images = resolve_dataset(dataset, split, classes, default=default)
    if isinstance(images, DrawnSamples):
        raise DataError(f"{type(images).__name__}: draws its samples at random; score fixed images")
    names, ignore_index = images.classes.names, images.classes.ignore_index
    if opened.num_labels not in (None, len(names)):
        raise DataError(f"the model has {opened.num_labels} classes, but the data set has {len(names)}")
    if default is not None:
        check_class_order(default.names, names, "the model", "the data set")
    rank, world = (dist.get_rank(), dist.get_world_size()) if _is_distributed() else (0, 1)
    if isinstance(images, Scenes) and opened.scene_bands not in ((), tuple(images.chosen_bands or ())):
        trained = ",".join(map(str, opened.scene_bands))
        if images.chosen_bands is None and isinstance(dataset, str | Path):
            images = open_dataset(with_options(str(dataset), bands=trained), split)
        elif rank == 0:
            print(f"{images.root}: other bands than {trained}, those of the training", file=sys.stderr)
    if default is not None and (differ := describe_other_names(default.names, names)) and rank == 0:
        print(f"{_data_title(dataset, images)}: {differ}", file=sys.stderr)
    share = range(rank, len(images), world)
    loader: DataLoader[Sample] = DataLoader(
        images,  # type: ignore[arg-type]
        sampler=share,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # otherwise it draws from the global generator
    )
    console = Console(stderr=True)
    samples = track(
        loader,
        "Scoring",
        total=len(share),
        disable=not (progress and console.is_terminal) or rank > 0,
        transient=True,
        console=console,
    )
    total = torch.zeros(len(names), len(names), dtype=torch.int64)
    ignored = torch.zeros((), dtype=torch.int64)
    image_iou: dict[str, float | None] = {}
    counts: dict[str, Counts] = {}
    with plain_data_errors():
        for sample in samples:
            prediction = predict_labels(opened, sample["image"], protocol, name=sample["name"])
            matrix = confusion_matrix(sample["mask"], prediction, len(names), ignore_index)
            total += matrix
            ignored += sample["mask"].numel() - matrix.sum()
            image_iou[sample["name"]] = mean_iou(matrix)
            counts[sample["name"]] = class_counts(matrix.numpy())
            if on_image is not None:
                on_image(sample["name"], matrix)
    if world > 1:
        total, ignored = total.to(opened.device), ignored.to(opened.device)
        dist.all_reduce(total)
        dist.all_reduce(ignored)
        shares: list[tuple[dict[str, float | None], dict[str, Counts]]] = [({}, {})] * world
        dist.all_gather_object(shares, (image_iou, counts))
        image_iou = {name: score for of, _ in shares for name, score in of.items()}
        counts = {name: of_image for _, of in shares for name, of_image in of.items()}
    total = total.cpu()
    warning = _one_class_warning(total, int(ignored), images.classes, _data_title(dataset, images))
    if warning and rank == 0:
        print(warning, file=sys.stderr)
    return Evaluation(
        metrics=compute_metrics(total, names),
        images=len(images),
        protocol=_protocol_record(protocol, ignore_index, opened),
        image_iou={name: image_iou[name] for name in images.names},
        confusion=total.tolist(),
        ignored_pixels=int(ignored),
        warning=warning,
        counts=np.stack([counts[name] for name in images.names]),
    )


def write_metrics(
    evaluation: Evaluation, path: str | Path, scored: dict[str, str | None] | None = None
) -> None:
    """Write `metrics.json` atomically.

    Args:
        evaluation: Scores to write.
        path: Path of the file.
        scored: What was scored; see `describe_scored`.

    Raises:
        OutputError: The file cannot be written.
    """
    content = evaluation.to_dict() | ({"scored": scored} if scored else {})
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def describe_scored(model: str, data: str, split: str) -> dict[str, str | None]:
    """Return what scores are of: names of model, data and split, and the digest of a folder's weights."""
    weights = Path(model) / "model.safetensors"
    return {
        "model": model,
        "data": data,
        "split": split,
        "weights_sha256": digest_of(weights) if weights.is_file() else None,
    }


def write_confusion(evaluation: Evaluation, path: str | Path) -> None:
    """Write the confusion matrix as CSV atomically: a row for each true class, beginning with its name.

    Raises:
        OutputError: The file cannot be written.
    """
    text = io.StringIO()
    names = list(evaluation.metrics.per_class)
    table = csv.writer(text)
    table.writerow(["true \\ predicted", *names])
    table.writerows([name, *row] for name, row in zip(names, evaluation.confusion, strict=True))
    write_atomically(path, text.getvalue())


def _one_class_warning(total: torch.Tensor, ignored: int, classes: Classes, title: str) -> str:
    """Say that the truth has one class, by which no model can be judged; "" if it has more.

    Raises:
        DataError: It has none.
    """
    truth = total.sum(dim=1).tolist()
    problem = describe_one_class(truth, ignored, classes, "its masks")
    if not any(truth):
        raise DataError(f"{title}: no labelled pixel to score: {problem}")
    if not problem:
        return ""
    name = next(name for name, count in zip(classes.names, truth, strict=True) if count)
    return f"{title}: predicting {name!r} everywhere gives mean IoU 1 here: {problem}"


def _data_title(dataset: Any, images: Any) -> str:
    """Return a name of the data for messages."""
    if isinstance(dataset, str | Path):
        return str(dataset)
    return str(getattr(images, "root", None) or getattr(images, "location", None) or describe_object(images))


def _protocol_record(protocol: EvaluationProtocol, ignore_index: int, engine: Engine) -> dict[str, Any]:
    """Return the protocol to store with the scores, with their definitions, the engine and the device."""
    return {
        "name": protocol.name,
        "summary": protocol.summary(),
        **protocol.model_dump(mode="json"),
        "resolution": "original; logits resized bilinearly, to the input's size first, before argmax",
        "mean_iou": "one confusion matrix over all images; classes present in truth or prediction",
        "devkit_mean_iou": "the same matrix; all classes, an absent one scores 0",
        "mean_iou_interval": f"{CONFIDENCE:.0%} percentile bootstrap of mean_iou, {RESAMPLES} draws of the "
        f"images; null for fewer than {FEWEST_IMAGES} images",
        "mean_image_iou": "mean over the images of each one's mean IoU; classes in its truth or prediction",
        "ignore_index": ignore_index,
        "engine": engine.library,
        "device": engine.device.type,
    }


def _model_classes(config: Any) -> Classes | None:
    """Return the classes in a model's configuration; None if there are none, or not from 0 on."""
    by_label = getattr(config, "id2label", None)
    if not by_label:
        return None
    ignore_index = getattr(config, "semantic_loss_ignore_index", 255)
    try:
        return classes_of_model(by_label, ignore_index, type(config).__name__)
    except DataError:  # the data may name the classes
        return None


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _unchanged(sample: Any) -> Any:
    return sample
