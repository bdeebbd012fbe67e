"""Show a run over an archive: scenes done, square kilometres an hour, time left, failures."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ccsegformer.archives.job import SceneResult


def shown(results: Iterable[SceneResult], total: int | None) -> Iterator[SceneResult]:
    """Yield results, and show progress on stderr: a bar on a terminal, else a line for each scene."""
    console = Console(stderr=True, soft_wrap=True)
    bar = Progress(
        TextColumn("mapping"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("scenes"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[trouble]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=3600,
    )
    counts: Counter[str] = Counter()
    begun, area = time.monotonic(), 0.0
    with bar:
        task = bar.add_task("", total=total, speed="", trouble="")
        for result in results:
            counts[result.status] += 1
            area += result.area_km2
            speed = area / (time.monotonic() - begun) * 3600
            trouble = f"[red]{counts['failed']} failed" if counts["failed"] else ""
            bar.update(task, advance=1, speed=f"{speed:,.0f} km²/h" if area else "", trouble=trouble)
            if not console.is_terminal or result.status == "failed" or result.notes:
                console.print(line_of(result), highlight=False, markup=False)
            yield result
    said = ", ".join(f"{counts[status]} {status}" for status in ("mapped", "kept", "failed"))
    console.print(f"{said}, {area:,.1f} km² in {time.monotonic() - begun:.0f} s", highlight=False)


def line_of(result: SceneResult) -> str:
    """Say on one line what came of a scene."""
    tries = f", {result.attempts} attempts" if result.attempts > 1 else ""
    about = result.reason or "; ".join(result.notes)
    head = f"{result.status} {result.scene.name} ({result.seconds:.1f} s{tries})"
    return f"{head}: {about}" if about else head
