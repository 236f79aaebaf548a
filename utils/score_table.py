"""The tables of results, on a terminal."""

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from utils.metrics import Metric
from utils.results import Result, ScoreTable, score_tables


def terminal_tables(results: list[Result], metrics: dict[str, Metric]) -> Iterator[Table]:
    """Scores beside the published ones; and where there are several weights, their differences to the first."""
    return map(_terminal_table, score_tables(results, metrics))


def _terminal_table(scores: ScoreTable) -> Table:
    table = Table(
        title=Text(scores.title, "bold"),
        title_justify="left",
        caption=Text(scores.caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("weights", overflow="fold")
    for column in scores.columns:
        table.add_column(column, justify="right")
    for section, rows in scores.sections.items():
        table.add_row(Text(section, "bold"))
        for row in rows:
            cells = (Text(cell.text, "bold" if cell.best else "") for cell in row.cells)
            name = Text(f"    {row.name}" if row.aside else f"  {row.name}")
            table.add_row(name, *cells, style="dim" if row.aside else "")
        table.add_section()
    return table
