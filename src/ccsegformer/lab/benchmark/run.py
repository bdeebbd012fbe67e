"""Run a planned benchmark, print its tables and write its files."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from ccsegformer.lab.benchmark.contest import busy_process, measure_limits
from ccsegformer.lab.benchmark.output import markdown, preamble, write_benchmark
from ccsegformer.lab.benchmark.plan import Plan
from ccsegformer.lab.benchmark.tables import Measurement, measure
from ccsegformer.report.machine import describe_machine


def run_benchmark(
    plan: Plan, *, rounds: int = 5, output: Path | None = None, show: Callable[[str], object] = print
) -> dict[str, list[Measurement]]:
    """Measure every contest of a plan and return its measurements by heading.

    Args:
        plan: Benchmark to run.
        rounds: Number of timings of each contender.
        output: Folder for NAME.json, NAME.md and NAME.svg; None writes nothing.
        show: Function that prints each table as soon as it is measured.
    """
    common = plan.common
    settings = {"what": plan.title, "rounds": rounds, "busy": plan.busy, "missing": plan.missing, **common}
    limits = measure_limits(common["dtype"], common["device"], common["threads"])
    machine = describe_machine() | {"threads": common["threads"]}
    show(preamble(machine, settings, limits))
    tables = {}
    with busy_process() if plan.busy else nullcontext():
        for heading, specifications in plan.contests.items():
            tables[heading] = measure(specifications, rounds, limits)
            show(markdown(heading, tables[heading]))
    if output:
        write_benchmark(output, plan.name, machine, settings, limits, tables)
        show(f"{output / plan.name}.md")
    return tables
