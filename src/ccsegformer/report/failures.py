"""Where a model fails, as one self-contained HTML page: classes by loss, confusions, the worst images."""

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
from ccsegformer.report._html import as_rgb, environment, panel, protocol_words
from ccsegformer.report.machine import describe_machine
from ccsegformer.report.table import number

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ccsegformer.labelling.engine import Engine

WORST_IMAGES = 8
PICTURE_SIDE = 640  # pixels, at most
MATRIX_CLASSES = 16
"""With more classes than these the matrix shows the most telling ones, and the others as one."""
LEGEND_CLASSES = 24
"""With more classes than these the legend holds only those of the pictures."""
OTHERS = "all others"


class Failure(NamedTuple):
    """One image, and what a model makes of it; truth and prediction are class ids (H, W)."""

    name: str
    score: float  # its own mean IoU
    image: NDArray[np.uint8]  # (H, W, 3), RGB
    truth: NDArray[np.integer]
    prediction: NDArray[np.integer]


class Cell(NamedTuple):
    """A cell of the confusion picture."""

    share: float  # of the true class's pixels
    kind: str  # right, wrong, or others: among classes that are not shown one by one
    title: str


def worst_images(
    model: "PreTrainedModel | Engine",
    dataset: LabelledImages,
    evaluation: Evaluation,
    protocol: EvaluationProtocol,
    count: int = WORST_IMAGES,
) -> Iterator[Failure]:
    """The images whose own mean IoU is least, the worst first, read and labelled again one by one."""
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
    """The page of an evaluation, as HTML; nothing is fetched, and no script runs."""
    losses = rank_shortfalls(evaluation.confusion, classes.names)
    pictures, seen = [], set()
    for failure in failures:  # one at a time: only small pictures of each stay
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
            told=_sentence(losses),
            losses=losses,
            most=max(of.shortfall for of in losses),
            labelled=sum(of.pixels for of in losses),
            absent=len(classes) - len(losses),
            colors=[f"rgb{color}" for color in classes.palette],
            matrix=confusion_picture(evaluation.confusion, losses),
            pictures=pictures,
            legend=[(classes.names[label], f"rgb{classes.palette[label]}") for label in shown],
            protocol=protocol_words(evaluation.protocol),
            machine=describe_machine(),
            command=shlex.join(command),
            version=ccsegformer.__version__,
        )
    )


def confusion_picture(
    confusion: Sequence[Sequence[int]], losses: Sequence[ClassShortfall]
) -> list[tuple[str, list[Cell]]]:
    """Rows of true classes with a cell for each predicted class: shares of the row's pixels.

    Classes are in the order of their label. Of more than `MATRIX_CLASSES` those that lose the most are there,
    each with the class that it is most confused with, and in the last row and column the sum of all others. A
    row without any pixel of truth has no cells.
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
            cells.append(Cell(share, kind, f"{true_name} labelled {name}: {share:.1%}, {found:,} pixels"))
        rows.append((true_name, cells if sum(pixels) else []))
    return rows


def _picture(failure: Failure, classes: Classes) -> dict[str, Any]:
    """The panels of an image, and the mistake that takes most of its pixels."""
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
        mistake = f"{share} of its pixels are {classes.names[true]} labelled {classes.names[predicted]}"
    return {"name": name, "score": failure.score, "panels": panels, "mistake": mistake}


def _figures(evaluation: Evaluation) -> list[tuple[str, float, str]]:
    """The scores by name with what they are, the protocol's own first."""
    metrics = evaluation.metrics
    data_set = ("mIoU", metrics.mean_iou, "of the data set: one confusion matrix over all images")
    images = ("image mIoU", evaluation.mean_image_iou, "the mean of each image's own mIoU: another quantity")
    first = [images, data_set] if evaluation.protocol["score"] == "mean_image_iou" else [data_set, images]
    return [
        *first,
        ("devkit mIoU", metrics.devkit_mean_iou, "over all classes, an absent one scoring 0"),
        ("pixel accuracy", metrics.pixel_accuracy, "the share of labelled pixels that are right"),
    ]


def _sentence(losses: Sequence[ClassShortfall]) -> str:
    """Which classes lose the most, in words."""
    missing = sum(of.shortfall for of in losses)
    if not missing:
        return "Every labelled pixel is right."
    worst = [of for of in losses[:3] if of.shortfall]
    share = sum(of.shortfall for of in worst) / missing
    names = ", ".join(of.name for of in worst[:-1]) + (" and " if worst[1:] else "") + worst[-1].name
    take = "take" if worst[1:] else "takes"
    return (
        f"{number(missing)} of the data set's mIoU is missing: {names} {take} {share:.0%} of that, and "
        f"{worst[0].name} is most confused with {worst[0].confused_with}."
    )
