"""What is measured, as rows: one contender at one size, against the best of those it is measured against."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ccsegformer.errors import CCSegformerError
from ccsegformer.lab.benchmark import attention, model
from ccsegformer.lab.benchmark.contest import KINK, TOLERANCES, contest, disagreement
from ccsegformer.lab.benchmark.runtimes import HINTS, NEEDED, missing

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
    """Beyond the weights, the input and the compiled program."""
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
    """The fastest of the rivals whose results agree."""
    failure: str | None = None


def model_contests(
    variants: Iterable[str],
    sizes: Iterable[int],
    attentions: Sequence[str],
    compiled: bool,
    where: str,
    common: Specification,
) -> Iterator[tuple[str, Specifications]]:
    """A heading and its contenders for each variant and size: transformers' SegFormer, then ours.

    Args:
        compiled: with what PyTorch runs as `torch.compile` makes it, too.
        where: a part of every heading: the threads and what runs beside.
    """
    for variant in variants:
        for size in sizes:
            fixed = {**common, "kind": "model", "variant": variant, "height": size, "width": size}
            theirs = _theirs({**fixed, "implementation": "transformers", "attention": "efficient"}, compiled)
            ours = [
                _ours(name, {**fixed, "implementation": "ours", "attention": name}, compiled)
                for name in attentions
            ]
            found = {name: each for group in (theirs, *ours) for name, each in group.items()}
            yield f"SegFormer-{variant.upper()}, {where}, {size} x {size}", found


def run_by(runtime: str, specifications: Specifications) -> Specifications:
    """Those contenders that "eager", "openvino" or "onnxruntime" runs.

    Raises:
        CCSegformerError: there are none.
    """
    found = {name: each for name, each in specifications.items() if each.get("runtime", "eager") == runtime}
    if not found:
        raise CCSegformerError(f"{runtime} runs none of them: {', '.join(specifications)}")
    return found


def able(common: Specification) -> set[str]:
    """Which runtimes other than PyTorch can do what is asked: they infer, on CPU, in some dtypes."""
    if common["device"] != "cpu" or common["training"] or common["dtype"] not in HINTS:
        return set()
    return set(NEEDED) if common["dtype"] == "float32" else {"OpenVINO"}


def _theirs(plain: Specification, compiled: bool) -> Specifications:
    there, channels_last = able(plain) - missing().keys(), {**plain, "channels_last": True}
    found = {"transformers": plain, "transformers, channels-last": channels_last}
    if compiled:
        found["transformers, compiled"] = {**plain, "compiled": True}
        found["transformers, channels-last, compiled"] = {**channels_last, "compiled": True}
    if "OpenVINO" in there:
        found["transformers, in OpenVINO"] = {**plain, "runtime": "openvino"}
    if "ONNX Runtime" in there:
        found["transformers, in ONNX Runtime"] = {**plain, "runtime": "onnxruntime"}
    return found


def _ours(name: str, plain: Specification, compiled: bool) -> Specifications:
    """By its plain name as the package runs it: with the OpenVINO engine, or else as it is."""
    there = able(plain) - missing().keys()
    found = {name: plain}
    if "OpenVINO" in there:
        found = {name: {**plain, "runtime": "openvino"}, f"{name}, eager": plain}
    if compiled:
        found[f"{name}, compiled"] = {**plain, "compiled": True}
    if there >= {"OpenVINO", "ONNX Runtime"}:
        found[f"{name}, ONNX in OpenVINO"] = {**plain, "runtime": "onnx_openvino"}
    if "ONNX Runtime" in there:
        found[f"{name}, ONNX in ONNX Runtime"] = {**plain, "runtime": "onnxruntime"}
    return found


def attention_contests(
    sizes: Iterable[int], backends: Sequence[str], common: Specification
) -> Iterator[tuple[str, Specifications]]:
    """A heading and its contenders for each size: the textbook formula, then the other backends."""
    for size in sizes:
        fixed = {**common, "kind": "attention", "height": size, "width": size}
        names = {"textbook formula": "reference", **{name: name for name in backends}}
        yield f"{size} x {size} positions", {name: {**fixed, "backend": each} for name, each in names.items()}


def measure(specifications: Specifications, rounds: int, limits: Mapping[str, float]) -> list[Row]:
    """Run a contest and check every contender; a ratio is between two whose results agree with the truth.

    Args:
        specifications: by name; the rivals' names begin as the first's does.
        rounds: how often each is timed.
        limits: what the machine does of each in a second, as `contest.measure_limits` finds.

    Raises:
        CCSegformerError: none of the rivals runs.
    """
    first = next(iter(specifications))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = contest(specifications, rounds, folder)
        truths: dict[str, Path] = {}
        rows = {
            name: _row(name, specification, found[name], limits, truths, folder)
            for name, specification in specifications.items()
        }
    rivals = [row for name, row in rows.items() if name.startswith(first)]
    if not any(row.seconds for row in rivals):
        raise CCSegformerError(f"{first}: {rivals[0].failure}")
    agreeing = [row for row in rivals if not row.failure]
    if not agreeing:
        return list(rows.values())
    best = min(agreeing, key=_seconds)
    return [row if row in rivals or row.failure else _against(row, best) for row in rows.values()]


def _row(
    name: str,
    specification: Specification,
    found: dict[str, Any],
    limits: Mapping[str, float],
    truths: dict[str, Path],
    folder: Path,
) -> Row:
    """What a contender did, checked; without ratios.

    Args:
        truths: results by specification; what is not there yet is added.
    """
    size = {"height": specification["height"], "width": specification["width"]}
    if "failure" in found:
        return Row(name, **size, failure=found["failure"])
    exact, checked_against = TRUTHS[specification["kind"]](specification)
    key = json.dumps(exact, sort_keys=True)
    if key not in truths:
        truths[key] = _results(exact, folder / f"truth-{len(truths)}")
    smaller = {"height": exact["height"], "width": exact["width"]}
    checked = (
        found["results"] if smaller == size else _results({**specification, **smaller}, folder / "small")
    )
    error = disagreement(checked, truths[key])
    least = {what: amount / limits[what] for what, amount in found["amounts"].items()}
    bound = max(least, key=least.__getitem__)
    has_kinks = specification["kind"] == "model" and specification["training"]
    agrees = error <= max(TOLERANCES[specification["dtype"]], KINK if has_kinks else 0.0)
    return Row(
        name,
        **size,
        seconds=found["seconds"],
        peak_mib=found["peak_bytes"] / 2**20,
        gflop=found["amounts"]["matrix product"] / 1e9,
        of_bound=least[bound] / median(found["seconds"]),
        bound=bound,
        error=error,
        checked_against=checked_against,
        failure=None if agrees else f"its results disagree with {checked_against}",
    )


def _against(row: Row, rival: Row) -> Row:
    assert row.peak_mib is not None
    memory = row.peak_mib / rival.peak_mib if rival.peak_mib else None
    return replace(row, faster=_seconds(rival) / _seconds(row), memory=memory, against=rival.name)


def _seconds(row: Row) -> float:
    assert row.seconds
    return median(row.seconds)


TRUTHS = {"model": model.truth, "attention": attention.truth}


def _results(specification: Specification, folder: Path) -> Path:
    """What a contender makes, unmeasured."""
    folder.mkdir(exist_ok=True)
    found = contest({"it": specification}, 0, folder)["it"]
    if "failure" in found:
        raise CCSegformerError(f"the check failed: {found['failure']}")
    path: Path = found["results"]
    return path
