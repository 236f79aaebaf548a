"""Results as files: results.json with everything, results.csv with the scores of each image, results.md with tables."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sed_sr.data.files import write_text
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.results import Result, by_scale, scored_benchmarks
from sed_sr.utils.report.output_folder import CSV, MARKDOWN, RESULTS
from sed_sr.utils.report.statistics import standard_error
from sed_sr.utils.report.tables import ScoreTable, compare_results, score_tables

PROTOCOL = (
    "SR rounded to 8 bits; PSNR and SSIM on Y (ITU-R BT.601, not rounded) with 4 pixels cropped on each side; LPIPS "
    "version 0.1 and the metrics of pyiqa on RGB, uncropped; where the sides of HR are no multiples of 4, on what SR "
    "and HR have in common; means over images"
)


def write_scores(
    folder: Path, results: list[Result], *, metrics: dict[str, Metric], settings: Mapping[str, Any]
) -> None:
    """Write results.json, .csv and .md.

    Args:
        settings: how the images were upscaled, for results.json.

    Raises:
        UserError: a file cannot be written.
    """
    write_text(folder / RESULTS, json.dumps({"settings": settings, **as_json(results, metrics)}, indent=2) + "\n")
    write_text(folder / CSV, as_csv(results, metrics))
    write_text(folder / MARKDOWN, as_markdown(results, metrics))


def as_markdown(results: list[Result], metrics: dict[str, Metric]) -> str:
    """The tables in GitHub's Markdown, best scores in bold."""
    return "\n".join(_markdown_table(table) for table in score_tables(results, metrics))


def _markdown_table(table: ScoreTable) -> str:
    header = ("benchmark", "weights", *table.columns)
    lines = [header, ("---", "---", *("---:" for _ in table.columns))]
    for section, rows in table.sections.items():
        for row in rows:
            cells = (f"**{cell.text}**" if cell.best else cell.text for cell in row.cells)
            lines.append((_escape_markdown(section), _escape_markdown(row.name), *cells))
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### {_escape_markdown(table.title)}\n\n{body}\n\n{_escape_markdown(table.caption)}\n"


def _escape_markdown(name: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", " ".join(name.split()))


def as_csv(results: list[Result], metrics: dict[str, Metric]) -> str:
    """A row for each image and candidate; missing scores are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("weights", "benchmark", "image", *metrics))
    for result in results:
        for benchmark, scores in result.benchmarks.items():
            for image, row in sorted(scores.images.items()):
                writer.writerow((result.label, benchmark, image, *(row.get(name, "") for name in metrics)))
    return text.getvalue()


def as_json(results: list[Result], metrics: dict[str, Metric]) -> dict[str, Any]:
    """All results. Infinite scores are None, since JSON has no infinity.

    Returns:
        `protocol`: how the scores are computed. `metrics`: title and direction of each, by name. `weights`: for each
        candidate its label, source, scale, about, paper_row and `benchmarks`, by name: means and standard errors, the
        number of images they are over (`images_scored`, by metric; `images_total`), scores of each image, failures
        and notes. `comparisons`: of each of the other candidates with the first of its scale, by benchmark and metric.
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
                "scale": result.scale,
                "about": result.about,
                "paper_row": result.paper_row,
                "benchmarks": {name: _benchmark_json(result, name) for name in result.benchmarks},
            }
            for result in results
        ],
        "comparisons": [
            comparison for own in by_scale(results).values() for comparison in _comparisons_json(own, metrics)
        ],
    }


def _benchmark_json(result: Result, benchmark: str) -> dict[str, Any]:
    scores = result.benchmarks[benchmark]
    return {
        "mean": _finite(scores.mean),
        "standard_error": {
            name: standard_error(list(result.image_scores(benchmark, name).values())) for name in scores.mean
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
        for benchmark in scored_benchmarks(results):
            for name in metrics:
                compared = compare_results(baseline, other, benchmark, name)
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
