"""The tables of results on the terminal."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.results import Result
from sed_sr.utils.report.tables import ScoreTable, score_tables

NAME_WIDTH = 20  # characters for names; where less is left, the cells are broken into lines
GAP_WIDTH = 3  # between columns


def terminal_tables(results: list[Result], metrics: dict[str, Metric]) -> Iterator["TerminalTable"]:
    """The `score_tables`, to be printed by rich."""
    return map(TerminalTable, score_tables(results, metrics))


@dataclass(frozen=True)
class TerminalTable:
    """A table that fits the width of the terminal: names are folded first, then cells are broken into lines."""

    scores: ScoreTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Called by rich."""
        for breaks in ("", " ", " ,"):
            columns = [[_broken(text, breaks) for text in column] for column in self._columns()]
            widths = [max(cell_len(line) for text in column for line in text.split("\n")) for column in columns]
            if NAME_WIDTH + sum(GAP_WIDTH + width for width in widths) <= options.max_width:
                break
        yield self._table(breaks)

    def _columns(self) -> Iterator[tuple[str, ...]]:
        """The texts of each column, with the header first."""
        rows = [row for rows in self.scores.sections.values() for row in rows]
        return zip(self.scores.columns, *([cell.text for cell in row.cells] for row in rows), strict=True)

    def _table(self, breaks: str) -> Table:
        table = Table(
            title=Text(self.scores.title, "bold"),
            title_justify="left",
            caption=Text(self.scores.caption),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("weights", overflow="fold")
        for column in self.scores.columns:
            table.add_column(_broken(column, breaks), justify="right", overflow="fold")
        for section, rows in self.scores.sections.items():
            table.add_row(Text(section, "bold"))
            for row in rows:
                cells = (Text(_broken(cell.text, breaks), "bold" if cell.best else "") for cell in row.cells)
                name = Padding(Text(row.name), (0, 0, 0, 4 if row.aside else 2))
                table.add_row(name, *cells, style="dim" if row.aside else "")
            table.add_section()
        return table


def _broken(text: str, breaks: str) -> str:
    """A text with a line break after each of these characters."""
    for character in breaks:
        text = text.replace(character, f"{character.strip()}\n")
    return text
