"""The table of a comparison fits a terminal, and its numbers are short."""

import io

from rich.console import Console

from ccsegformer.report.table import digits, duration, number, print_table, table_rows


def test_every_row_has_a_cell_for_every_model(results):
    rows = table_rows(results)
    assert all(len(row.cells) == 3 for row in rows)
    assert [row.cells[1] for row in rows if row.label == "GFLOPs"] == ["4.18"]


def test_the_terminal_shows_scores_and_verdict_in_80_columns(results):
    screen = io.StringIO()
    print_table(results, Console(file=screen, width=80, color_system=None))
    text = screen.getvalue()
    for model in results["models"].values():
        assert f"{model['mean_iou']:.3f}" in text
    assert results["verdict"]["control"][:40] in text
    assert max(map(len, text.splitlines())) <= 80


def test_numbers_are_as_short_as_they_can_be():
    assert [number(None), number(0.12345)] == ["–", "0.123"]
    assert [digits(value) for value in (None, 0.0123, 3.0, 31.44, 1234.5)] == [
        "–",
        "0.0123",
        "3.00",
        "31.4",
        "1234",
    ]
    assert [duration(value).replace("\xa0", " ") for value in (44.6, 200, 7500)] == [
        "45 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
