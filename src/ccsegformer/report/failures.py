"""Render where a model fails as one self-contained HTML page: shortfalls, confusions, worst images."""

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import ccsegformer
from ccsegformer.config.protocol import EvaluationProtocol
from ccsegformer.data.dataset import LabelledImages
from ccsegformer.data.labels import Classes, colorize
from ccsegformer.evaluation.confusion import confusion_matrix
from ccsegformer.evaluation.evaluate import Evaluation
from ccsegformer.evaluation.shortfalls import ClassShortfall, rank_shortfalls
from ccsegformer.labelling.labeller import predict_labels
from ccsegformer.report._display import as_rgb
from ccsegformer.report._html import environment, panel, protocol_words
from ccsegformer.report.machine import describe_machine
from ccsegformer.report.table import number

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ccsegformer.labelling.engine import Engine

WORST_IMAGES = 8
PICTURE_SIDE = 640  # pixels, at most
MATRIX_CLASSES = 16
"""Largest number of rows in the matrix; further classes are merged into one row."""
LEGEND_CLASSES = 24
"""Largest number of classes to list completely in the legend; beyond it, only those in the pictures are."""
OTHERS = "all others"


class Failure(NamedTuple):
    """Image with its truth and a model's prediction as class ids (H, W)."""

    name: str
    score: float  # mean IoU of this image
    image: NDArray[np.uint8]  # (H, W, 3), RGB
    truth: NDArray[np.integer]
    prediction: NDArray[np.integer]


class Cell(NamedTuple):
    """Cell of the confusion matrix."""

    share: float  # of the row's pixels
    kind: str  # "right", "wrong", or "others" for pixels within the merged classes
    title: str


def worst_images(
    model: "PreTrainedModel | Engine",
    dataset: LabelledImages,
    evaluation: Evaluation,
    protocol: EvaluationProtocol,
    count: int = WORST_IMAGES,
) -> Iterator[Failure]:
    """Yield the images with the lowest mean IoU, worst first, reading and labelling them again."""
    places = {name: place for place, name in enumerate(dataset.names)}
    scored = [(score, name) for name, score in evaluation.image_iou.items() if score is not None]
    for score, name in sorted(scored)[:count]:
        sample = dataset[places[name]]
        prediction = predict_labels(model, sample["image"], protocol, name=name)
        image = as_rgb(sample["image"])
        yield Failure(name, score, image, sample["mask"].numpy(), prediction.numpy())


def render_failures(
    evaluation: Evaluation,
    classes: Classes,
    failures: Iterator[Failure],
    *,
    model: str,
    data: str,
    split: str,
    command: Sequence[str],
) -> str:
    """Return the HTML page of an evaluation, without scripts or external resources."""
    losses = rank_shortfalls(evaluation.confusion, classes.names)
    pictures, seen = [], set()
    for failure in failures:  # one at a time, keeping only small pictures
        seen |= {*np.unique(failure.truth).tolist(), *np.unique(failure.prediction).tolist()}
        pictures.append(_picture(failure, classes))
    shown = range(len(classes)) if len(classes) <= LEGEND_CLASSES else sorted(seen - {classes.ignore_index})
    return (
        environment()
        .get_template("failures.html.j2")
        .render(
            evaluation=evaluation,
            model=model,
            data=data,
            split=split,
            figures=_figures(evaluation),
            summary=_summary(losses),
            losses=losses,
            most=max(of.shortfall for of in losses),
            labelled=sum(of.pixels for of in losses),
            absent=len(classes) - len(losses),
            colors=[f"rgb{color}" for color in classes.palette],
            matrix=confusion_rows(evaluation.confusion, losses),
            pictures=pictures,
            legend=[(classes.names[label], f"rgb{classes.palette[label]}") for label in shown],
            protocol=protocol_words(evaluation.protocol),
            machine=describe_machine(),
            command=shlex.join(command),
            version=ccsegformer.__version__,
        )
    )


def confusion_rows(
    confusion: Sequence[Sequence[int]], losses: Sequence[ClassShortfall]
) -> list[tuple[str, list[Cell]]]:
    """Return the rows of a confusion matrix: true classes, with the share of each predicted class.

    Classes are sorted by label. If there are more than `MATRIX_CLASSES`, only those with the largest
    shortfalls and the classes that they are confused with are shown; the last row and column merge all
    others. A row without true pixels has no cells.
    """
    counts: NDArray[np.int64] = np.asarray(confusion, dtype=np.int64)
    names = {of.name: of.label for of in losses}
    shown = sorted(names.values())
    if len(shown) > MATRIX_CLASSES:
        pairs = [name for of in losses for name in (of.name, of.confused_with) if name is not None]
        shown = sorted(names[name] for name in list(dict.fromkeys(pairs))[: MATRIX_CLASSES - 1])
    rest = sorted({*names.values()} - {*shown})
    groups = [
        (name, [label]) for name, label in sorted(names.items(), key=lambda of: of[1]) if label in shown
    ]
    groups += [(OTHERS, rest)] if rest else []
    rows = []
    for true_name, true in groups:
        pixels = [int(counts[np.ix_(true, labels)].sum()) for _, labels in groups]
        cells = []
        for (name, labels), found in zip(groups, pixels, strict=True):
            share = found / max(sum(pixels), 1)
            kind = "others" if true == labels == rest else "right" if true == labels else "wrong"
            cells.append(Cell(share, kind, f"{true_name} labelled as {name}: {share:.1%}, {found:,} pixels"))
        rows.append((true_name, cells if sum(pixels) else []))
    return rows


def _picture(failure: Failure, classes: Classes) -> dict[str, Any]:
    """Return the panels of an image and its most frequent mistake."""
    name = failure.name
    panels = [
        panel(failure.image, "Image", f"{name}: the image", is_labels=False, longest_side=PICTURE_SIDE),
        panel(
            colorize(failure.truth, classes), "Truth", f"{name}: the true classes", longest_side=PICTURE_SIDE
        ),
        panel(
            colorize(failure.prediction, classes),
            "Prediction",
            f"{name}: the predicted classes, mean IoU {number(failure.score)}",
            longest_side=PICTURE_SIDE,
        ),
    ]
    labels = (torch.from_numpy(failure.truth), torch.from_numpy(failure.prediction))
    wrong = confusion_matrix(*labels, len(classes), classes.ignore_index).numpy()
    labelled = wrong.sum()
    np.fill_diagonal(wrong, 0)
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    mistake = ""
    if wrong.any():
        share = f"{wrong.max() / labelled:.0%}" if wrong.max() / labelled >= 0.005 else "less than 1%"
        mistake = f"{share} of its pixels are {classes.names[true]} labelled as {classes.names[predicted]}"
    return {"name": name, "score": failure.score, "panels": panels, "mistake": mistake}


def _figures(evaluation: Evaluation) -> list[tuple[str, float, str]]:
    """Return the scores with their names and meanings, the protocol's own score first."""
    metrics = evaluation.metrics
    data_set = ("mIoU", metrics.mean_iou, "over the data set: one confusion matrix for all images")
    images = ("image mIoU", evaluation.mean_image_iou, "mean of per-image mIoU; not comparable with mIoU")
    first = [images, data_set] if evaluation.protocol["score"] == "mean_image_iou" else [data_set, images]
    return [
        *first,
        ("devkit mIoU", metrics.devkit_mean_iou, "over all classes; absent classes score 0"),
        ("pixel accuracy", metrics.pixel_accuracy, "share of labelled pixels that are correct"),
    ]


def _summary(losses: Sequence[ClassShortfall]) -> str:
    """Say which classes have the largest shortfalls."""
    missing = sum(of.shortfall for of in losses)
    if not missing:
        return "Every labelled pixel is correct."
    worst = [of for of in losses[:3] if of.shortfall]
    share = sum(of.shortfall for of in worst) / missing
    names = ", ".join(of.name for of in worst[:-1]) + (" and " if worst[1:] else "") + worst[-1].name
    account = "account" if worst[1:] else "accounts"
    return (
        f"The data set's mIoU is {number(missing)} below 1. {names} {account} for {share:.0%} of this "
        f"shortfall; {worst[0].name} is most often confused with {worst[0].confused_with}."
    )
