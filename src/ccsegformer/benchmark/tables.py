"""What is measured, as rows: one contender at one size, against the best of those it is measured against."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ccsegformer.benchmark import attention, model
from ccsegformer.benchmark.contest import TOLERANCES, best, contest, disagreement
from ccsegformer.errors import CCSegformerError

Specification = dict[str, Any]
Specifications = dict[str, Specification]


@dataclass(frozen=True)
class Row:
    """One contender at one size. What is not known is None, and `failure` says why."""

    name: str
    height: int
    width: int
    seconds: list[float] | None = None
    """One a round, the contenders in turn."""
    peak_mib: float | None = None
    """Beyond weights and inputs."""
    gflop: float | None = None
    """10^9 operations a run, a multiply-add being 2."""
    of_bound: float | None = None
    """The time that the machine needs at least, at its own limits, as a share of the time taken."""
    bound: str | None = None
    """The limit that takes longest."""
    error: float | None = None
    """Root mean square, relative to that of what it is checked against."""
    checked_against: str | None = None
    faster: float | None = None
    """How many times faster than `against`; None for the rivals, and where results disagree."""
    memory: float | None = None
    """Its peak memory as a share of that of `against`."""
    against: str | None = None
    """The fastest of the rivals."""
    failure: str | None = None


def model_contests(
    variants: Iterable[str],
    sizes: Iterable[int],
    attentions: Sequence[str],
    compiled: bool,
    common: Specification,
) -> Iterator[tuple[str, Specifications]]:
    """A heading and its contenders for each variant and size: transformers' SegFormer, then ours."""
    for variant in variants:
        for size in sizes:
            fixed = {**common, "kind": "model", "variant": variant, "height": size, "width": size}
            theirs = {**fixed, "implementation": "transformers", "attention": "efficient"}
            found = {"transformers": theirs, "transformers, channels-last": {**theirs, "channels_last": True}}
            for name in attentions:
                found[name] = {**fixed, "implementation": "ours", "attention": name}
            if compiled:
                found |= {f"{name}, compiled": {**each, "compiled": True} for name, each in found.items()}
            yield f"SegFormer-{variant.upper()}, {size} x {size}", found


def attention_contests(
    sizes: Iterable[int], backends: Sequence[str], common: Specification
) -> Iterator[tuple[str, Specifications]]:
    """A heading and its contenders for each size: the textbook formula, then the other backends."""
    for size in sizes:
        fixed = {**common, "kind": "attention", "height": size, "width": size}
        names = {"textbook formula": "reference", **{name: name for name in backends}}
        yield f"{size} x {size} positions", {name: {**fixed, "backend": each} for name, each in names.items()}


def measure(specifications: Specifications, rounds: int, limits: Mapping[str, float]) -> list[Row]:
    """Run a contest and check every contender; one whose results disagree gets no ratio.

    Args:
        specifications: by name; the rivals' names begin as the first's does.
        rounds: how often each is timed.
        limits: what the machine does of each in a second, as `contest.measure_limits` finds.

    Raises:
        CCSegformerError: none of the rivals runs.
    """
    first = next(iter(specifications))
    with tempfile.TemporaryDirectory() as folder:
        found = contest(specifications, rounds, Path(folder))
        rival = best(found, [name for name in found if name.startswith(first)])
        rows: list[Row] = []
        truths: dict[str, Path] = {}
        for name, specification in specifications.items():
            size = {"height": specification["height"], "width": specification["width"]}
            own = found[name]
            if "failure" in own:
                rows.append(Row(name, **size, failure=own["failure"]))
                continue
            exact, checked_against = TRUTHS[specification["kind"]](specification)
            key = json.dumps(exact, sort_keys=True)
            if key not in truths:
                truths[key] = _results(exact, Path(folder) / f"truth-{len(truths)}")
            smaller = {"height": exact["height"], "width": exact["width"]}
            checked = (
                own["results"]
                if smaller == size
                else _results({**specification, **smaller}, Path(folder) / "small")
            )
            error = disagreement(checked, truths[key])
            agrees = error <= TOLERANCES[specification["dtype"]]
            seconds = median(own["seconds"])
            least = {what: amount / limits[what] for what, amount in own["amounts"].items()}
            bound = max(least, key=least.__getitem__)
            row = Row(
                name,
                **size,
                seconds=own["seconds"],
                peak_mib=own["peak_bytes"] / 2**20,
                gflop=own["amounts"]["matrix product"] / 1e9,
                of_bound=least[bound] / seconds,
                bound=bound,
                error=error,
                checked_against=checked_against,
                failure=None if agrees else f"its results disagree with {checked_against}",
            )
            if agrees and not name.startswith(first):
                ratios = (
                    median(found[rival]["seconds"]) / seconds,
                    own["peak_bytes"] / found[rival]["peak_bytes"],
                )
                row = replace(row, faster=ratios[0], memory=ratios[1], against=rival)
            rows.append(row)
    return rows


TRUTHS = {"model": model.truth, "attention": attention.truth}


def _results(specification: Specification, folder: Path) -> Path:
    """What a contender makes, unmeasured."""
    folder.mkdir(exist_ok=True)
    found = contest({"it": specification}, 0, folder)["it"]
    if "failure" in found:
        raise CCSegformerError(f"the check failed: {found['failure']}")
    path: Path = found["results"]
    return path
