"""What a person sees: comparisons, their table, their charts and their page."""

from ccsegformer.report.comparison import compare
from ccsegformer.report.page import render_page
from ccsegformer.report.table import print_table

__all__ = ["compare", "print_table", "render_page"]
