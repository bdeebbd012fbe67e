"""Which attention is better, and whether the data could tell: numbers first, then sentences from them.

An image enters as three counts a class (pixels right, pixels of truth, pixels of prediction), from which the
mean IoU of any set of images follows. So images are resampled at the level of the data set's mean IoU: an
average of the images' own IoUs, which is another quantity, is never used for a verdict.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ccsegformer.models.attention import ATTENTIONS, CONTROL

CONFIDENCE = 0.95
RESAMPLES = 2000
BOOTSTRAP_SEED = 0
FEWEST_IMAGES = 10
"""With fewer, resampling says little: no interval is given, and no winner named."""

Counts = NDArray[np.int64]  # (..., 3, classes): pixels right, of truth, of prediction


class Difference(TypedDict):
    """How much higher the mean IoU of `first` is than that of `second`, on the same images."""

    first: str
    second: str
    difference: float
    interval: list[float] | None
    by_seed: list[float]
    told_apart: bool


class Verdict(TypedDict):
    """What can be said, in sentences and in numbers."""

    headline: str
    attention: str
    control: str
    caveat: str
    better: str
    told_apart: bool
    judges_attention: bool
    intervals: dict[str, list[float] | None]
    differences: list[Difference]
    confidence: float
    resamples: int
    bootstrap_seed: int
    images: int
    seeds: int


def class_counts(confusion: NDArray[np.int64]) -> Counts:
    """Reduce a confusion matrix (K, K), rows the truth, to the counts (3, K) that the mean IoU needs."""
    return np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)])


def mean_iou(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """Mean IoU (...) of counts (..., 3, K), over the classes in truth or prediction; NaN with none."""
    right, truth, predicted = np.moveaxis(counts.astype(np.float64), -2, 0)
    union = truth + predicted - right
    present = union > 0
    iou = np.divide(right, union, out=np.zeros_like(union), where=present)
    with np.errstate(invalid="ignore"):
        return iou.sum(axis=-1) / present.sum(axis=-1)


def bootstrap(counts: Mapping[str, Counts]) -> dict[str, NDArray[np.float64]]:
    """Mean IoU of resampled data sets, by model: (RESAMPLES,), the same images drawn for every model.

    `counts` are (seeds, images, 3, K) by model; each resample's figure is the mean over the seeds.
    """
    images = next(iter(counts.values())).shape[1]
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = generator.multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return {
        model: np.mean([mean_iou(np.tensordot(drawn, run, axes=1)) for run in runs], axis=0)
        for model, runs in counts.items()
    }


def interval(resampled: NDArray[np.float64]) -> list[float]:
    """The percentile interval [low, high] of a resampled figure, leaving out resamples without a class."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return [float(low), float(high)]


def judge(counts: Mapping[str, Counts]) -> Verdict:
    """Judge models by attention, `CONTROL` among them, from counts (seeds, images, 3, K) of the same images.

    One of two models is ahead when the interval of their paired difference, over resampled images, leaves out
    0 and the difference has the same sign for every seed. `better` is the attention with the highest mean
    IoU, the control left out; `differences` are its leads over each other attention, then over the control;
    `intervals` are those of each model's own mean IoU.
    """
    seeds, images = next(iter(counts.values())).shape[:2]
    resampled = bootstrap(counts) if images >= FEWEST_IMAGES else None
    by_seed = {model: mean_iou(runs.sum(axis=1)) for model, runs in counts.items()}

    def difference(first: str, second: str) -> Difference:
        gaps = by_seed[first] - by_seed[second]
        bounds = interval(resampled[first] - resampled[second]) if resampled else None
        clear = bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
        return {
            "first": first,
            "second": second,
            "difference": float(gaps.mean()),
            "interval": bounds,
            "by_seed": gaps.tolist(),
            "told_apart": clear and bool((gaps > 0).all() or (gaps < 0).all()),
        }

    ranked = sorted(by_seed.keys() - {CONTROL}, key=lambda model: (-by_seed[model].mean(), model))
    between = [difference(ranked[0], other) for other in ranked[1:]]
    control = difference(ranked[0], CONTROL)
    judges = control["told_apart"] and control["difference"] > 0
    scope = f"{images} held-back images, {'one seed' if seeds == 1 else f'{seeds} seeds'}"
    return {
        "headline": _headline(between, control, judges, images),
        "attention": " ".join(_between(pair, scope) for pair in between),
        "control": _against_control(control, judges),
        "caveat": _caveat(seeds, images),
        "better": ranked[0],
        "told_apart": bool(between) and all(pair["told_apart"] for pair in between),
        "judges_attention": judges,
        "intervals": {name: interval(resampled[name]) if resampled else None for name in counts},
        "differences": [*between, control],
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES if resampled else 0,
        "bootstrap_seed": BOOTSTRAP_SEED,
        "images": images,
        "seeds": seeds,
    }


def _headline(between: Sequence[Difference], control: Difference, judges: bool, images: int) -> str:
    first = _capital(ATTENTIONS[control["first"]].phrase)
    if images < FEWEST_IMAGES:
        return f"{images} held-back images are too few to tell"
    if not judges:
        return "No gain from attention shows on these data"
    if not between:
        return f"{first} is better than none"
    if between[0]["told_apart"]:
        return f"{first} is ahead"
    return f"{first} and {ATTENTIONS[between[0]['second']].phrase} cannot be told apart"


def _between(pair: Difference, scope: str) -> str:
    first, second = _capital(ATTENTIONS[pair["first"]].phrase), ATTENTIONS[pair["second"]].phrase
    lead = signed(pair["difference"])
    if pair["told_apart"]:
        return f"{first} is ahead of {second} by {lead} mIoU ({_interval(pair)} over {scope})."
    return (
        f"{first} and {second} cannot be told apart: a difference of {lead} mIoU "
        f"({_interval(pair)} over {scope})."
    )


def _against_control(pair: Difference, judges: bool) -> str:
    first, lead = ATTENTIONS[pair["first"]].phrase, signed(pair["difference"])
    if judges:
        return (
            "These data can judge attention: the control, the same network with no attention, is "
            f"{lead} mIoU behind {first} ({_interval(pair)})."
        )
    standing = "is ahead of" if pair["told_apart"] else "cannot be told apart from"
    return (
        "These data cannot judge attention: the control, the same network with no attention, "
        f"{standing} {first}, whose lead is {lead} mIoU ({_interval(pair)}). "
        "What lies between the attentions says little about them."
    )


def _caveat(seeds: int, images: int) -> str:
    resampling = "The interval is from resampling the images, as if they were independent: "
    resampling += "frames of one video are not, and make it too narrow."
    if images < FEWEST_IMAGES:
        resampling = f"With fewer than {FEWEST_IMAGES} images no interval is given, and no winner named."
    if seeds == 1:
        return f"{resampling} One seed: how far another seed would move the scores is not known."
    return f"{resampling} A model counts as ahead only if it is so for each of the {seeds} seeds."


def _interval(pair: Difference) -> str:
    if pair["interval"] is None:
        return "no interval"
    low, high = pair["interval"]
    return f"{CONFIDENCE:.0%} interval {signed(low)} to {signed(high)}"


def signed(value: float, *, plus: bool = False) -> str:
    """Three decimals with a true minus sign, a plus sign if wanted, and no sign before zero."""
    text = f"{value:+.3f}" if plus else f"{value:.3f}"
    return "0.000" if round(value, 3) == 0 else text.replace("-", "−")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
