"""Test whether models with different attentions differ in score, and put the answer into words."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from ccsegformer.evaluation.bootstrap import (
    BOOTSTRAP_SEED,
    CONFIDENCE,
    FEWEST_IMAGES,
    RESAMPLES,
    Counts,
    bootstrap,
    interval,
    mean_iou_from_counts,
)
from ccsegformer.models.attention import ATTENTIONS, CONTROL


class Difference(TypedDict):
    """Mean IoU of `first` minus that of `second`, on the same images."""

    first: str
    second: str
    difference: float
    interval: list[float] | None
    by_seed: list[float]
    told_apart: bool


class Verdict(TypedDict):
    """Conclusions of a comparison, as sentences and as numbers."""

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


def judge(counts: Mapping[str, Counts], names: Sequence[str] = ()) -> Verdict:
    """Compare models that differ in their attention.

    One model is ahead of another if the interval of their paired difference over resampled images excludes 0
    and the difference has the same sign for every seed. In the result, `better` is the attention with the
    highest mean IoU, not counting the control; `differences` are its leads over each other attention and
    then over the control; `intervals` belong to each model's own mean IoU. If the truth has one class only,
    no model is ahead, and the sentences say so.

    Args:
        counts: Counts (seeds, images, 3, K) of the same images by attention, including `CONTROL`.
        names: Names of the classes, for the sentences; otherwise their numbers.
    """
    seeds, images = next(iter(counts.values())).shape[:2]
    resampled = bootstrap(counts) if images >= FEWEST_IMAGES else None
    one_class = _only_class(next(iter(counts.values())), names)
    by_seed = {model: mean_iou_from_counts(runs.sum(axis=1)) for model, runs in counts.items()}

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
            "told_apart": not one_class and clear and bool((gaps > 0).all() or (gaps < 0).all()),
        }

    ranked = sorted(by_seed.keys() - {CONTROL}, key=lambda model: (-by_seed[model].mean(), model))
    between = [difference(ranked[0], other) for other in ranked[1:]]
    control = difference(ranked[0], CONTROL)
    judges = control["told_apart"] and control["difference"] > 0
    sample = f"{images} held-out images, {'one seed' if seeds == 1 else f'{seeds} seeds'}"
    return {
        "headline": f"These data have one class, {one_class}: no model can be called better"
        if one_class
        else _headline(between, control, judges, images),
        "attention": " ".join(_difference_sentence(pair, sample) for pair in between),
        "control": f"Every labelled pixel of the held-out images is {one_class}, so a model that always "
        "answers that scores 1.000: these data cannot show whether attention helps."
        if one_class
        else _control_sentence(control, judges),
        "caveat": _caveats(seeds, images),
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


def _only_class(counts: Counts, names: Sequence[str]) -> str:
    """Return the class of all true pixels in counts (seeds, images, 3, K), or "" if there are more."""
    found = np.flatnonzero(counts[0, :, 1].sum(axis=0)).tolist()
    return "" if len(found) != 1 else repr(names[found[0]]) if names else f"number {found[0]}"


def _headline(between: Sequence[Difference], control: Difference, judges: bool, images: int) -> str:
    first = ATTENTIONS[control["first"]].phrase
    if images < FEWEST_IMAGES:
        return f"Too few held-out images ({images}) to compare the models"
    if not judges:
        return "No gain from attention could be shown on these data"
    if not between:
        return f"{_capital(first)} is better than no attention"
    second = ATTENTIONS[between[0]["second"]].phrase
    if between[0]["told_apart"]:
        return f"{_capital(first)} is ahead of {second}"
    return f"No difference between {first} and {second} could be shown"


def _difference_sentence(pair: Difference, sample: str) -> str:
    first, second = ATTENTIONS[pair["first"]].phrase, ATTENTIONS[pair["second"]].phrase
    lead, evidence = signed(pair["difference"]), f"({_interval(pair)}; {sample})"
    if pair["told_apart"]:
        return f"{_capital(first)} is ahead of {second} by {lead} mIoU {evidence}."
    return (
        f"No difference between {first} and {second} could be shown: {first} leads by {lead} mIoU {evidence}."
    )


def _control_sentence(pair: Difference, judges: bool) -> str:
    first, lead = ATTENTIONS[pair["first"]].phrase, pair["difference"]
    control = "the control, the same network without attention,"
    if judges:
        finding = f"{control} is {signed(lead)} mIoU behind {first} ({_interval(pair)})"
        return f"Attention helps on these data: {finding}."
    if pair["interval"] is None:
        ahead, behind = (first, control.removesuffix(",")) if lead >= 0 else (control, first)
        return (
            f"There are too few images to show whether attention helps: {ahead} leads {behind} "
            f"by {signed(abs(lead))} mIoU."
        )
    if pair["told_apart"]:
        finding = f"{control} is {signed(-lead)} mIoU ahead of {first} ({_interval(pair, negated=True)})"
    else:
        finding = f"no difference between {first} and {control} could be shown "
        ahead = first if lead >= 0 else "the control"
        finding += f"({ahead} leads by {signed(abs(lead))} mIoU; {_interval(pair, negated=lead < 0)})"
    return (
        f"Attention does not measurably help on these data: {finding}. "
        "Differences between the attentions mean little here."
    )


def _caveats(seeds: int, images: int) -> str:
    resampling = (
        "Intervals are from resampling the images as if they were independent. Frames of a video are not, "
        "and their intervals are too narrow."
    )
    if images < FEWEST_IMAGES:
        resampling = (
            f"With fewer than {FEWEST_IMAGES} images, no interval is given and no model is called better."
        )
    if seeds == 1:
        return f"{resampling} Only one seed was run, so the variation between seeds is unknown."
    return f"{resampling} A model is called ahead only if it is ahead for each of the {seeds} seeds."


def _interval(pair: Difference, *, negated: bool = False) -> str:
    """Describe the interval of a difference, or with `negated`, of its negative."""
    if pair["interval"] is None:
        return "no interval"
    low, high = pair["interval"]
    low, high = (-high, -low) if negated else (low, high)
    return f"{CONFIDENCE:.0%} interval {signed(low)} to {signed(high)}"


def signed(value: float, *, plus: bool = False) -> str:
    """Format with three decimals and a true minus sign; zero has no sign. `plus` adds a plus sign."""
    text = f"{value:+.3f}" if plus else f"{value:.3f}"
    return "0.000" if round(value, 3) == 0 else text.replace("-", "−")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
