import io
import math
import re
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from rich.console import Console

from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.results import BenchmarkScores, Result
from sed_sr.utils.report.tables import score_tables
from sed_sr.utils.report.terminal import terminal_tables

METRICS = {
    name: Metric(name, title, compute=lambda sr, hr: math.nan, lower_is_better=lower, decimals=decimals)
    for name, title, lower, decimals in (
        ("psnr", "PSNR-Y", False, 2),
        ("ssim", "SSIM-Y", False, 4),
        ("lpips", "LPIPS", True, 4),
    )
}
FIVE = METRICS | {name: replace(METRICS["lpips"], name=name, title=name.upper()) for name in ("dists", "piqe")}


def results(labels, row="RRDB+P+SeD"):
    return [
        Result(
            label,
            f"{label}.pth",
            4,
            "RRDB, x4",
            row,
            {
                "Urban100": BenchmarkScores(
                    {
                        str(n): {
                            "psnr": 25 + n + 0.01 * n * shift,
                            "ssim": 0.7 + 0.01 * shift,
                            "lpips": 0.1 + n / 50,
                            "dists": 0.2 + n * shift / 70,
                            "piqe": 40 + n * shift * 7.7,
                        }
                        for n in range(4)
                    }
                )
            },
        )
        for shift, label in enumerate(labels)
    ]


def printed(results, width, metrics=METRICS, **options):
    console = Console(width=width, file=io.StringIO(), **options)
    for table in terminal_tables(results, metrics):
        console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_every_cell_is_shown_completely(width):
    shown = printed(results(["bicubic", "RRDB_P+SeD"]), width)
    assert max(map(len, shown.splitlines())) <= width
    for table in score_tables(results(["bicubic", "RRDB_P+SeD"]), METRICS):
        for rows in table.sections.values():
            for row in rows:
                assert row.name in shown
                for cell in row.cells:
                    mean, _, rest = cell.text.partition(" ")  # an error or an interval, which may be a line below
                    assert mean in shown
                    assert rest in shown


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_numbers_are_never_cut_and_long_names_are_folded(width, count):
    long = "".join(chr(ord("A") + n % 26) for n in range(60))
    metrics = dict(islice(FIVE.items(), count))
    compared = results(["bicubic", long])
    lines = printed(compared, width, metrics).splitlines()
    assert max(map(len, lines)) <= width
    shown = Counter(word for line in lines for word in re.split(r"[ ,]", line))
    for table in score_tables(compared, metrics):
        cells = [cell.text for rows in table.sections.values() for row in rows for cell in row.cells]
        words = Counter(word for cell in cells for word in re.split(r"[ ,]", cell))
        assert words <= shown
    names = "".join(re.findall(r"^ *([A-Z]+)(?: |$)", "\n".join(lines), re.MULTILINE))
    assert names == long * 2


def test_wide_terminal_has_one_line_for_each_row():
    compared = results(["bicubic", "RRDB_P+SeD"])
    lines = printed(compared, 120).splitlines()
    for table in score_tables(compared, METRICS):
        for row in (row for rows in table.sections.values() for row in rows):
            words = " ".join((row.name, *(cell.text for cell in row.cells))).split()
            assert words in [line.split() for line in lines]


def test_best_is_bold_and_the_paper_row_is_dim():
    compared = results(["a", "b"])
    shown = printed(compared, 120, force_terminal=True, color_system="standard", no_color=True)
    _, _, better, _ = score_tables(compared, METRICS)[0].sections["Urban100 (4 images)"]
    bold = [text.strip() for text in re.findall(r"\x1b\[1m([^\x1b]*)", shown)]
    assert [cell.text in bold for cell in better.cells] == [True, True, False]  # LPIPS is the same
    paper = next(line for line in shown.splitlines() if "paper: " in line)
    assert "\x1b[2m" in paper
    assert "\x1b[1m" not in paper


def test_labels_are_not_parsed_as_markup():
    assert "[bold]x[/]" in printed(results(["[bold]x[/]"], row=None), 120)
