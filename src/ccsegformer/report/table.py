"""Table of a comparison, with the same rows on the HTML page and in the terminal."""

from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from ccsegformer.models.attention import ATTENTIONS


class TableRow(NamedTuple):
    """One quantity for every model, formatted."""

    label: str
    note: str
    cells: list[str]


def table_rows(results: dict[str, Any]) -> list[TableRow]:
    """Return one row per score or cost, with one cell per model."""
    models = list(results["models"].values())
    seeds = len(models[0]["runs"])
    cost = results["protocol"]["cost"]
    size = f"{cost['width']} × {cost['height']}"

    def row(label: str, note: str, cell: Callable[[dict[str, Any]], str]) -> TableRow:
        return TableRow(label, note, [cell(model) for model in models])

    rows = [row("Mean IoU", _score_note(seeds), lambda model: number(model["mean_iou"]))]
    if models[0]["mean_iou_interval"]:
        rows.append(
            row("95% interval", "from resampled images", lambda model: span(model["mean_iou_interval"]))
        )
    if seeds > 1:
        rows.append(row("Seeds", "standard deviation", lambda model: number(model["mean_iou_std"])))
    return [
        *rows,
        row("Mean accuracy", "", lambda model: number(model["mean_accuracy"])),
        row("Pixel accuracy", "", lambda model: number(model["pixel_accuracy"])),
        row("Parameters, millions", "", lambda model: f"{model['parameters'] / 1e6:.2f}"),
        row("GFLOPs", f"at {size}; a multiply-add counts as 2", lambda model: digits(model["gflops"])),
        row("Peak memory, MiB", "for one image, without weights", lambda m: digits(m["peak_memory_mib"])),
        row(
            "Images per second", f"one at a time, {cost['device']}", lambda m: digits(m["images_per_second"])
        ),
        row("Training time", "per seed" if seeds > 1 else "", lambda model: duration(model["train_seconds"])),
    ]


def print_table(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the table and the conclusions."""
    cost = results["protocol"]["cost"]
    table = Table(
        header_style="bold",
        caption=f"Cost of one {cost['width']} × {cost['height']} image on {cost['device']}; "
        "a multiply-add counts as 2 operations; memory does not include the weights",
    )
    table.add_column("")
    for attention, model in results["models"].items():
        table.add_column(model_label(attention, model), justify="right")
    for row in table_rows(results):
        table.add_row(row.label, *row.cells)
    console = console or Console()
    console.print(table)
    verdict = results["verdict"]
    for sentence in (verdict["attention"], verdict["control"], verdict["caveat"]):
        console.print(sentence, highlight=False)


def model_label(attention: str, model: dict[str, Any]) -> str:
    """Return the attention's short name, with its recurrence if that is more than 1."""
    label, recurrence = ATTENTIONS[attention].label, model["recurrence"]
    return f"{label}, R\xa0=\xa0{recurrence}" if recurrence and recurrence > 1 else label


def number(value: float | None) -> str:
    """Format a score with three decimals; None is a dash."""
    return "–" if value is None else f"{value:.3f}"


def span(bounds: list[float] | None) -> str:
    """Format an interval; None is a dash."""
    return "–" if bounds is None else f"{bounds[0]:.3f}–{bounds[1]:.3f}"


def digits(value: float | None) -> str:
    """Format with three significant digits and no exponent; None is a dash."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1 else f"{value:#.3g}"


def duration(seconds: float) -> str:
    """Format seconds as 45 s, 3 min 20 s or 2 h 05 min, with non-breaking spaces inside each unit."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}\xa0s"
    if whole < 3600:
        return f"{whole // 60}\xa0min {whole % 60:02d}\xa0s"
    return f"{whole // 3600}\xa0h {whole % 3600 // 60:02d}\xa0min"


def _score_note(seeds: int) -> str:
    return "on held-out images" if seeds == 1 else f"on held-out images, mean of {seeds} seeds"
