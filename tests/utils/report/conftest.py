"""Made-up results, so that the right tables and files are known."""

import math

from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.results import BenchmarkScores, Result


def metric(name, title, **properties):
    return Metric(name, title, compute=lambda sr, hr: math.nan, **properties)


METRICS = {
    "psnr": metric("psnr", "PSNR-Y", decimals=2),
    "lpips": metric("lpips", "LPIPS", lower_is_better=True),
}


def result(label, psnr, lpips, *, row=None, benchmark="Set5", **others):
    """Scores of as many images as `psnr` and `lpips` are long; None: it could not be computed."""
    columns = {"psnr": psnr, "lpips": lpips}
    images = {
        str(number): {name: scores[number] for name, scores in columns.items() if scores[number] is not None}
        for number in range(len(psnr))
    }
    return Result(label, f"{label}.pth", 4, "RRDB, x4", row, {benchmark: BenchmarkScores(images), **others})


def rows_of(table):
    return {row.name: row for rows in table.sections.values() for row in rows}


def texts(row):
    return [cell.text for cell in row.cells]


def bold(row):
    return [cell.best for cell in row.cells]
