"""Tables of results, independent of how they are displayed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.paper_scores import PAPER_SCALE, paper_row
from sed_sr.utils.evaluation.results import Result, by_scale, scored_benchmarks
from sed_sr.utils.report.statistics import Comparison, compare, standard_error

ABSENT = "-"


@dataclass(frozen=True)
class Cell:
    """A text, and whether it is the best score of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """The scores of one candidate, or the published scores (`aside`) below them."""

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
    """Scores beside the published ones, and the differences of all other candidates to the first; for each scale.

    Benchmarks without scores are left out, and so are empty tables.
    """
    tables, scales = [], by_scale(results)
    for scale, own in scales.items():
        suffix = "" if len(scales) == 1 else f", x{scale}"
        tables += [_scores(own, metrics, suffix), _differences(own, metrics, suffix)]
    return [table for table in tables if table.sections]


def compare_results(baseline: Result, other: Result, benchmark: str, metric: str) -> Comparison | None:
    """Compare two candidates on the images for which both have a score; None if there are none."""
    first, second = (result.image_scores(benchmark, metric) for result in (baseline, other))
    common = [image for image in first if image in second]
    return compare([first[image] for image in common], [second[image] for image in common]) if common else None


def _scores(results: list[Result], metrics: dict[str, Metric], suffix: str) -> ScoreTable:
    sections = {}
    for benchmark, total in scored_benchmarks(results).items():
        rows = []
        for result in results:
            cells = [_score_cell(results, result, benchmark, metric) for metric in metrics.values()]
            rows += [Row(result.label, tuple(cells)), *_paper_row(result, benchmark, metrics)]
        sections[f"{benchmark} ({total} image{'s' if total > 1 else ''})"] = rows
    remarks = ["± standard error over the images"]
    if any(row.aside for rows in sections.values() for row in rows):
        remarks.append("in brackets: ours minus the paper's")
    remarks += _coverage_remarks(results)
    return ScoreTable(f"scores{suffix}", _columns(metrics), sections, "; ".join(remarks))


def _score_cell(results: list[Result], result: Result, benchmark: str, metric: Metric) -> Cell:
    own = result.image_scores(benchmark, metric.name)
    if not own:
        return Cell(ABSENT)
    scores, precision = result.benchmarks[benchmark], f".{metric.decimals}f"
    mean, error = scores.mean[metric.name], standard_error(list(own.values()))
    error_text = "" if error is None else f" ±{error:{precision}}"
    scored = [each for each in results if each.image_scores(benchmark, metric.name)]
    same_images = len({tuple(each.image_scores(benchmark, metric.name)) for each in scored}) == 1
    means = {each.benchmarks[benchmark].mean[metric.name] for each in scored}
    return Cell(
        f"{mean:{precision}}{error_text}{_coverage(len(own), scores.total)}",
        best=same_images and len(means) > 1 and mean == (min if metric.lower_is_better else max)(means),
    )


def _paper_row(result: Result, benchmark: str, metrics: dict[str, Metric]) -> Iterator[Row]:
    """The published scores and the difference of our means over all images; no row where none are published."""
    # The benchmarks of several scales have the scale in their names.
    published = paper_row(result.paper_row).get(benchmark.removesuffix(f"_x{PAPER_SCALE}"))
    ours = result.benchmarks[benchmark].complete_mean if benchmark in result.benchmarks else {}
    cells = []
    for name, metric in metrics.items():
        score, mean = getattr(published, name, None), ours.get(name)
        if score is None:
            cells.append(Cell(ABSENT))
        elif mean is None:
            cells.append(Cell(format(score, f".{metric.decimals}f")))
        else:
            cells.append(Cell(f"{score:.{metric.decimals}f} ({mean - score:+.{metric.decimals}f})"))
    if any(cell.text != ABSENT for cell in cells):
        yield Row(f"paper: {result.paper_row}", tuple(cells), aside=True)


def _coverage(count: int, total: int) -> str:
    """The number of images of a mean, if these are not all."""
    return "" if count == total else f" ({count}/{total})"


def _coverage_remarks(results: list[Result]) -> list[str]:
    benchmarks = [scores for result in results for scores in result.benchmarks.values()]
    if all(count == scores.total for scores in benchmarks for count in scores.counts.values()):
        return []
    return ["(n/m): over n of m images, because the others could not be scored"]


def _differences(results: list[Result], metrics: dict[str, Metric], suffix: str) -> ScoreTable:
    baseline, *others = results
    sections = {}
    for benchmark in scored_benchmarks(results):
        rows = []
        for other in others:
            compared = [compare_results(baseline, other, benchmark, name) for name in metrics]
            if any(compared):
                total = baseline.benchmarks[benchmark].total
                cells = (_difference_cell(*each, total=total) for each in zip(compared, metrics.values(), strict=True))
                rows.append(Row(other.label, tuple(cells)))
        if rows:
            sections[benchmark] = rows
    remarks = ["mean of the paired differences [95 % bootstrap interval, from 5 images on]; *: the interval excludes 0"]
    remarks += _coverage_remarks(results)
    return ScoreTable(f"differences to {baseline.label}{suffix}", _columns(metrics), sections, "; ".join(remarks))


def _difference_cell(compared: Comparison | None, metric: Metric, *, total: int) -> Cell:
    if compared is None:
        return Cell(ABSENT)
    signed = f"+.{metric.decimals}f"
    text = ABSENT if math.isnan(compared.mean) else format(compared.mean, signed)  # inf - inf
    if compared.interval is not None:
        low, high = (format(end, signed) for end in compared.interval)
        text += f" [{low},{high}]{'*' if compared.excludes_zero else ''}"
    return Cell(text + _coverage(compared.images, total))


def _columns(metrics: dict[str, Metric]) -> tuple[str, ...]:
    return tuple(f"{metric.title} {'↓' if metric.lower_is_better else '↑'}" for metric in metrics.values())
