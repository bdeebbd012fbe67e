"""Measure each engine on one window: `python -m benchmarks.engines [--window 512 ...] [--output FILE]`.

SegFormer-B0 with random weights, one square window, inference on CPU. Each line is measured in a process of
its own: the median of seconds over rounds, and the memory of a run beyond the weights, the input and the
compiled graph. The choice of a window for scenes weighs the two.
"""

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ccsegformer.files import write_atomically
from ccsegformer.lab.benchmark.contest import ERROR_TOLERANCES, contest, disagreement
from ccsegformer.report.machine import describe_machine

ENGINES = {
    "torch": {"runtime": "torch", "dtype": "float32"},
    "openvino fp32": {"runtime": "openvino", "dtype": "float32"},
    "openvino bf16": {"runtime": "openvino", "dtype": "bfloat16"},
}
ATTENTIONS = ("efficient", "criss_cross")
CLASSES = (2, 150)
WINDOWS = (512, 1024, 2048, 4096)
COLUMNS = ("engine", "attention", "classes", "window", "seconds", "seconds per megapixel", "peak MiB")


def specification(engine: str, attention: str, classes: int, window: int, threads: int) -> dict[str, Any]:
    """Return the specification of a contender for `contest`."""
    return {
        "kind": "model",
        "implementation": "ours",
        "variant": "b0",
        "attention": attention,
        "classes": classes,
        "height": window,
        "width": window,
        "batch": 1,
        "training": False,
        "device": "cpu",
        "threads": threads,
        **ENGINES[engine],
    }


def measure(engine: str, wanted: dict[str, Any], rounds: int, folder: Path) -> dict[str, Any]:
    """Measure seconds, peak MiB and the error relative to the torch engine, or return the failure.

    Args:
        engine: Key of `ENGINES`.
        wanted: Specification of the contender.
        rounds: Number of timed runs.
        folder: Folder for results; the torch engine's stay there for comparison with the others.
    """
    found = contest({engine: wanted}, rounds, folder)[engine]
    if "failure" in found:
        return {"failure": found["failure"]}
    row = {"seconds": found["seconds"], "peak_mib": found["peak_bytes"] / 2**20}
    truth = folder / "torch"
    if engine == "torch":
        found["results"].rename(truth)
    elif truth.exists():
        row["error"] = disagreement(found["results"], truth)
        if row["error"] > ERROR_TOLERANCES[wanted["dtype"]]:
            row["failure"] = "its results disagree with the torch engine's"
    return row


def line(row: dict[str, Any]) -> str:
    """Format a row of the Markdown table."""
    cells = [row["engine"], row["attention"], str(row["classes"]), str(row["window"])]
    if "failure" in row:
        cells += [row["failure"], "", ""]
    else:
        seconds = median(row["seconds"])
        cells += [f"{seconds:.3g}", f"{seconds / row['window'] ** 2 * 1e6:.3g}", f"{row['peak_mib']:.0f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table line by line; rewrite the JSON file after each line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, action="append", help="may be repeated; default: all")
    parser.add_argument(
        "--attention", choices=ATTENTIONS, action="append", help="may be repeated; default: both"
    )
    parser.add_argument("--classes", type=int, action="append", help="may be repeated; default: 2 and 150")
    parser.add_argument("--window", type=int, action="append", help="side in pixels; may be repeated")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each engine")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    given = parser.parse_args()
    settings = {"variant": "b0", "batch": 1, "rounds": given.rounds}
    machine, rows = describe_machine() | {"threads": given.threads}, []
    print(f"| {' | '.join(COLUMNS)} |\n|---|---{'|---:' * (len(COLUMNS) - 2)}|", flush=True)
    for attention, classes, window in product(
        given.attention or ATTENTIONS, given.classes or CLASSES, given.window or WINDOWS
    ):
        with tempfile.TemporaryDirectory() as folder:
            for engine in [name for name in ENGINES if name in (given.engine or ENGINES)]:
                wanted = specification(engine, attention, classes, window, given.threads)
                names = {"engine": engine, "attention": attention, "classes": classes, "window": window}
                rows.append(names | measure(engine, wanted, given.rounds, Path(folder)))
                print(line(rows[-1]), flush=True)
                if given.output:
                    content = {"machine": machine, "settings": settings, "rows": rows}
                    write_atomically(given.output, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
