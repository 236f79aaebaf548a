"""Scores for people and for programs."""

import math
from typing import Any

from rich.table import Table

from utils.evaluate import BenchmarkScores
from utils.paper_scores import paper_row

COLUMNS = {"psnr": ("PSNR-Y", ".2f"), "ssim": ("SSIM-Y", ".4f"), "lpips": ("LPIPS", ".4f")}


def score_table(scores: dict[str, BenchmarkScores], row: str | None) -> Table:
    """A row for each benchmark with ground truth; beside each score the paper's in its row `row`, where it has one."""
    scored = {name: benchmark for name, benchmark in scores.items() if benchmark.mean}
    published = {name: paper_row(row).get(name) for name in scored}
    table = Table()
    table.add_column("benchmark")
    table.add_column("images", justify="right")
    metrics = list(next(iter(scored.values())).mean)
    for metric in metrics:
        table.add_column(COLUMNS[metric][0], justify="right")
        if any(published.values()):
            table.add_column("paper", justify="right", style="dim")
    for name, benchmark in scored.items():
        cells = [name, str(len(benchmark.images))]
        for metric in metrics:
            cells.append(format(benchmark.mean[metric], COLUMNS[metric][1]))
            if any(published.values()):
                theirs = getattr(published[name], metric, None)
                cells.append("-" if theirs is None else format(theirs, COLUMNS[metric][1]))
        table.add_row(*cells)
    if any(published.values()):
        table.caption = f"paper: {row}"
    return table


def as_json(scores: dict[str, BenchmarkScores]) -> dict[str, Any]:
    """{benchmark: {metric: mean, ..., "images": {file: {metric: score}}}}; JSON has no infinity, which becomes null."""
    return {
        name: {**_finite(benchmark.mean), "images": {file: _finite(row) for file, row in benchmark.images.items()}}
        for name, benchmark in scores.items()
    }


def _finite(row: dict[str, float]) -> dict[str, float | None]:
    return {metric: score if math.isfinite(score) else None for metric, score in row.items()}
