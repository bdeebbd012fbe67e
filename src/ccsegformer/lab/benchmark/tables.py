"""Measure contenders, check their results and compare them with the fastest rival."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.benchmark import attention, model
from ccsegformer.lab.benchmark.contest import ERROR_TOLERANCES, GRADIENT_TOLERANCE, contest, disagreement

Specification = dict[str, Any]
Specifications = dict[str, Specification]
TRUTHS = {"model": model.truth, "attention": attention.truth}


@dataclass(frozen=True)
class Measurement:
    """Figures of one contender at one size. Unknown figures are None, and `failure` gives the reason."""

    name: str
    height: int
    width: int
    seconds: list[float] | None = None
    """Time of a run in each round."""
    peak_mib: float | None = None
    """Memory needed by a run, without weights, input and compiled program."""
    gflop: float | None = None
    """10^9 operations of a run; a multiply-add counts as 2."""
    of_bound: float | None = None
    """Shortest time that the machine's limits allow, as a share of the time taken."""
    bound: str | None = None
    """Limit that determines the shortest time."""
    error: float | None = None
    """Root mean square error, relative to the result checked against."""
    checked_against: str | None = None
    faster: float | None = None
    """Speed-up over `against`; None for rivals and for wrong results."""
    memory: float | None = None
    """Peak memory as a share of that of `against`."""
    against: str | None = None
    """Fastest rival with correct results."""
    failure: str | None = None


def measure(specifications: Specifications, rounds: int, limits: Mapping[str, float]) -> list[Measurement]:
    """Run a contest, check every contender's results and compare it with the fastest rival.

    Args:
        specifications: Contenders by name. The first one and those whose names start with its name are the
            rivals.
        rounds: Number of timings of each contender.
        limits: Limits of the machine per second, from `contest.measure_limits`.

    Raises:
        CCSegformerError: No rival could be run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = contest(specifications, rounds, folder)
        truths: dict[str, Path] = {}
        rows = [
            _measurement(name, specification, found[name], limits, truths, folder)
            for name, specification in specifications.items()
        ]
    return add_ratios(rows)


def add_ratios(rows: Sequence[Measurement]) -> list[Measurement]:
    """Compare contenders with the fastest rival whose results are correct.

    Args:
        rows: Measurements. The first one and those whose names start with its name are the rivals.

    Raises:
        CCSegformerError: No rival could be run.
    """
    rivals = [row for row in rows if row.name.startswith(rows[0].name)]
    if not any(row.seconds for row in rivals):
        raise CCSegformerError(f"{rows[0].name}: {rivals[0].failure}")
    correct = [row for row in rivals if not row.failure]
    if not correct:
        return list(rows)
    best = min(correct, key=_median_seconds)
    return [row if row in rivals or row.failure else _with_ratios(row, best) for row in rows]


def _with_ratios(row: Measurement, rival: Measurement) -> Measurement:
    assert row.peak_mib is not None
    memory = row.peak_mib / rival.peak_mib if rival.peak_mib else None
    faster = _median_seconds(rival) / _median_seconds(row)
    return replace(row, faster=faster, memory=memory, against=rival.name)


def _median_seconds(row: Measurement) -> float:
    assert row.seconds
    return median(row.seconds)


def _measurement(
    name: str,
    specification: Specification,
    found: dict[str, Any],
    limits: Mapping[str, float],
    truths: dict[str, Path],
    folder: Path,
) -> Measurement:
    """Check a contender's results and return its figures without ratios.

    Args:
        truths: Results already computed, by specification; missing ones are added.
    """
    size = {"height": specification["height"], "width": specification["width"]}
    if "failure" in found:
        return Measurement(name, **size, failure=found["failure"])
    exact, checked_against = TRUTHS[specification["kind"]](specification)
    key = json.dumps(exact, sort_keys=True)
    if key not in truths:
        truths[key] = _compute_results(exact, folder / f"truth-{len(truths)}")
    smaller = {"height": exact["height"], "width": exact["width"]}
    checked = (
        found["results"]
        if smaller == size
        else _compute_results({**specification, **smaller}, folder / "small")
    )
    error = disagreement(checked, truths[key])
    shortest = {what: amount / limits[what] for what, amount in found["amounts"].items()}
    bound = max(shortest, key=shortest.__getitem__)
    return Measurement(
        name,
        **size,
        seconds=found["seconds"],
        peak_mib=found["peak_bytes"] / 2**20,
        gflop=found["amounts"]["matrix product"] / 1e9,
        of_bound=shortest[bound] / median(found["seconds"]),
        bound=bound,
        error=error,
        checked_against=checked_against,
        failure=None if error <= _tolerance(specification) else f"results disagree with {checked_against}",
    )


def _tolerance(specification: Specification) -> float:
    has_gradients = specification["kind"] == "model" and specification["training"]
    return max(ERROR_TOLERANCES[specification["dtype"]], GRADIENT_TOLERANCE if has_gradients else 0.0)


def _compute_results(specification: Specification, folder: Path) -> Path:
    """Run a contender once, without timing, and return the file with its results."""
    folder.mkdir(exist_ok=True)
    found = contest({"it": specification}, 0, folder)["it"]
    if "failure" in found:
        raise CCSegformerError(f"the check failed: {found['failure']}")
    path: Path = found["results"]
    return path
