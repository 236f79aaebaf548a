"""What several weights scored on several benchmarks: as JSON, CSV, Markdown, and as the tables of the terminal."""

import csv
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sed_sr.utils.evaluation.evaluate import BenchmarkScores
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.paper_scores import paper_row
from sed_sr.utils.report.statistics import Comparison, compare, standard_error

PROTOCOL = (
    "SR rounded to 8 bits; PSNR and SSIM on Y (ITU-R BT.601, not rounded) with 4 pixels cropped on each side; LPIPS "
    "version 0.1 and the metrics of pyiqa on RGB, uncropped; where the sides of HR are no multiples of 4, on what SR "
    "and HR have in common; means over images"
)
ABSENT = "-"


@dataclass(frozen=True)
class Result:
    """What one of the weights scored."""

    label: str  # as tables and folders call it
    source: str  # path of the weights, or "bicubic"
    about: str  # what it is, in words
    paper_row: str | None  # the row of utils.paper_scores that it is compared with
    benchmarks: dict[str, BenchmarkScores]


# ---------------------------------------------------------------------------------------------------------------------
# Tables, before anybody has decided how they look


@dataclass(frozen=True)
class Cell:
    """A text, and whether it is the best of its kind."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """What there is to say of one of the weights, or of a published row (`aside`) that stands below one."""

    name: str
    cells: tuple[Cell, ...]
    aside: bool = False


@dataclass(frozen=True)
class ScoreTable:
    """Rows by benchmark, with a column for each metric."""

    title: str
    columns: tuple[str, ...]
    sections: dict[str, list[Row]]
    caption: str


def score_tables(results: list[Result], metrics: dict[str, Metric]) -> list[ScoreTable]:
    """Scores beside the published ones; and where there are several weights, their differences to the first.

    Benchmarks of which nothing was scored are left out, and so is a table in which nothing is left.
    """
    tables = [_scores(results, metrics), _differences(results, metrics)]
    return [table for table in tables if table.sections]


def _scores(results: list[Result], metrics: dict[str, Metric]) -> ScoreTable:
    sections = {}
    for benchmark, total in _scored(results).items():
        rows = []
        for result in results:
            cells = [_score_cell(results, result, benchmark, metric) for metric in metrics.values()]
            rows += [Row(result.label, tuple(cells)), *_published(result, benchmark, metrics)]
        sections[f"{benchmark} ({total} image{'s' if total > 1 else ''})"] = rows
    remarks = ["± standard error over the images"]
    if any(row.aside for rows in sections.values() for row in rows):
        remarks.append("in brackets: ours minus the paper's")
    remarks += _coverage_remarks(results)
    return ScoreTable("scores", _columns(metrics), sections, "; ".join(remarks))


def _score_cell(results: list[Result], result: Result, benchmark: str, metric: Metric) -> Cell:
    column = _column(result, benchmark, metric)
    if not column:
        return Cell(ABSENT)
    scores, precision = result.benchmarks[benchmark], f".{metric.decimals}f"
    mean, error = scores.mean[metric.name], standard_error(list(column.values()))
    spread = "" if error is None else f" ±{error:{precision}}"
    rivals = [each for each in results if _column(each, benchmark, metric)]
    comparable = len({tuple(_column(rival, benchmark, metric)) for rival in rivals}) == 1  # over the same images
    means = {rival.benchmarks[benchmark].mean[metric.name] for rival in rivals}
    return Cell(
        f"{mean:{precision}}{spread}{_coverage(len(column), scores.total)}",
        best=comparable and len(means) > 1 and mean == (min if metric.lower_is_better else max)(means),
    )


def _published(result: Result, benchmark: str, metrics: dict[str, Metric]) -> Iterator[Row]:
    """The paper's scores and how far ours, over all images, are from them; nothing where the paper has none."""
    theirs = paper_row(result.paper_row).get(benchmark)
    ours = result.benchmarks[benchmark].complete_mean if benchmark in result.benchmarks else {}
    cells = []
    for name, metric in metrics.items():
        published, mean = getattr(theirs, name, None), ours.get(name)
        if published is None:
            cells.append(Cell(ABSENT))
        elif mean is None:
            cells.append(Cell(format(published, f".{metric.decimals}f")))
        else:
            cells.append(Cell(f"{published:.{metric.decimals}f} ({mean - published:+.{metric.decimals}f})"))
    if any(cell.text != ABSENT for cell in cells):
        yield Row(f"paper: {result.paper_row}", tuple(cells), aside=True)


def _coverage(count: int, total: int) -> str:
    """How many images a mean is over, where these are not all."""
    return "" if count == total else f" ({count}/{total})"


def _coverage_remarks(results: list[Result]) -> list[str]:
    benchmarks = [scores for result in results for scores in result.benchmarks.values()]
    if all(count == scores.total for scores in benchmarks for count in scores.counts.values()):
        return []
    return ["(n/m): over n of m images, because the others could not be scored"]


def _differences(results: list[Result], metrics: dict[str, Metric]) -> ScoreTable:
    baseline, *others = results
    sections = {}
    for benchmark in _scored(results):
        rows = []
        for other in others:
            compared = [_compared(baseline, other, benchmark, metric) for metric in metrics.values()]
            if any(compared):
                total = baseline.benchmarks[benchmark].total
                cells = (_difference_cell(*each, total=total) for each in zip(compared, metrics.values(), strict=True))
                rows.append(Row(other.label, tuple(cells)))
        if rows:
            sections[benchmark] = rows
    remarks = ["mean of the differences image by image [95 % bootstrap interval, from 5 images on]; * it excludes 0"]
    remarks += _coverage_remarks(results)
    return ScoreTable(f"differences to {baseline.label}", _columns(metrics), sections, "; ".join(remarks))


def _difference_cell(compared: Comparison | None, metric: Metric, *, total: int) -> Cell:
    if compared is None:
        return Cell(ABSENT)
    sign = f"+.{metric.decimals}f"
    text = ABSENT if math.isnan(compared.mean) else format(compared.mean, sign)  # inf - inf
    if compared.interval is not None:
        low, high = (format(end, sign) for end in compared.interval)
        text += f" [{low},{high}]{'*' if compared.excludes_zero else ''}"
    return Cell(text + _coverage(compared.images, total))


def _compared(baseline: Result, other: Result, benchmark: str, metric: Metric) -> Comparison | None:
    """On the images that both have the score of; None where there is no such image."""
    first, second = (_column(result, benchmark, metric) for result in (baseline, other))
    common = [image for image in first if image in second]
    return compare([first[image] for image in common], [second[image] for image in common]) if common else None


def _columns(metrics: dict[str, Metric]) -> tuple[str, ...]:
    return tuple(f"{metric.title} {'↓' if metric.lower_is_better else '↑'}" for metric in metrics.values())


def _scored(results: list[Result]) -> dict[str, int]:
    """The benchmarks of which some weights have a mean, with their numbers of images."""
    return {name: scores.total for result in results for name, scores in result.benchmarks.items() if scores.mean}


def _column(result: Result, benchmark: str, metric: Metric) -> dict[str, float]:
    """The scores of the images that have one, by the images' names and in their order."""
    if benchmark not in result.benchmarks:
        return {}
    images = sorted(result.benchmarks[benchmark].images.items())
    return {image: scores[metric.name] for image, scores in images if metric.name in scores}


# ---------------------------------------------------------------------------------------------------------------------
# Files


def as_markdown(results: list[Result], metrics: dict[str, Metric]) -> str:
    """The tables as GitHub shows them, the best in bold."""
    return "\n".join(_markdown_table(table) for table in score_tables(results, metrics))


def _markdown_table(table: ScoreTable) -> str:
    header = ("benchmark", "weights", *table.columns)
    lines = [header, ("---", "---", *("---:" for _ in table.columns))]
    for section, rows in table.sections.items():
        for row in rows:
            cells = (f"**{cell.text}**" if cell.best else cell.text for cell in row.cells)
            lines.append((_markdown(section), _markdown(row.name), *cells))
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### {_markdown(table.title)}\n\n{body}\n\n{_markdown(table.caption)}\n"


def _markdown(name: str) -> str:
    """A name as it is, whatever it means to Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", " ".join(name.split()))


def as_csv(results: list[Result], metrics: dict[str, Metric]) -> str:
    """A row for each image that each of the weights upscaled; empty where there is no score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("weights", "benchmark", "image", *metrics))
    for result in results:
        for benchmark, scores in result.benchmarks.items():
            for image, row in sorted(scores.images.items()):
                writer.writerow((result.label, benchmark, image, *(row.get(name, "") for name in metrics)))
    return text.getvalue()


def as_json(results: list[Result], metrics: dict[str, Metric]) -> dict[str, Any]:
    """Everything, for programs; a score that is infinite, which JSON does not have, is None.

    Returns:
        `protocol`: how scores are made, in words. `metrics`: title and direction of each, by name. `weights`: for each
        of them label, source, about, paper_row and `benchmarks`, by name: means and standard errors, over how many
        images they are (`images_scored`, by metric) of how many (`images_total`), scores of each image, failures and
        notes. `comparisons`: of each of the other weights with the first, by benchmark and metric.
    """
    return {
        "protocol": PROTOCOL,
        "metrics": {
            name: {"title": metric.title, "lower_is_better": metric.lower_is_better} for name, metric in metrics.items()
        },
        "weights": [
            {
                "label": result.label,
                "source": result.source,
                "about": result.about,
                "paper_row": result.paper_row,
                "benchmarks": {name: _benchmark_json(result, name, metrics) for name in result.benchmarks},
            }
            for result in results
        ],
        "comparisons": list(_comparisons_json(results, metrics)),
    }


def _benchmark_json(result: Result, benchmark: str, metrics: dict[str, Metric]) -> dict[str, Any]:
    scores = result.benchmarks[benchmark]
    return {
        "mean": _finite(scores.mean),
        "standard_error": {
            name: standard_error(list(_column(result, benchmark, metrics[name]).values())) for name in scores.mean
        },
        "images_scored": scores.counts,
        "images_total": scores.total,
        "images": {image: _finite(row) for image, row in scores.images.items()},
        "failures": list(scores.failures),
        "notes": list(scores.notes),
    }


def _comparisons_json(results: list[Result], metrics: dict[str, Metric]) -> Iterator[dict[str, Any]]:
    baseline, *others = results
    for other in others:
        for benchmark in _scored(results):
            for name, metric in metrics.items():
                compared = _compared(baseline, other, benchmark, metric)
                if compared is not None:
                    yield {
                        "baseline": baseline.label,
                        "weights": other.label,
                        "benchmark": benchmark,
                        "metric": name,
                        "images": compared.images,
                        **_finite({"mean_difference": compared.mean}),
                        "interval_95": compared.interval,
                    }


def _finite(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: score if math.isfinite(score) else None for name, score in scores.items()}
