"""The folder of what `test.py` makes: label/benchmark/image.png, and what was found out about them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.benchmarks import Benchmark
from utils.errors import UserError
from utils.files import write_text
from utils.metrics import Metric
from utils.report import write_report
from utils.results import Result, as_csv, as_json, as_markdown

RESULTS = "results.json"


def claim(folder: Path, sources: Mapping[str, str], benchmarks: Sequence[Benchmark]) -> None:
    """Make the folder, or make sure that nothing in it will be lost.

    Args:
        sources: file, or `bicubic`, by label.
        benchmarks: that are about to be upscaled.

    Raises:
        UserError: the folder cannot be made or written; SR images would take the place of those of the benchmarks;
            or the folder holds results of other weights, or scores of other benchmarks.
    """
    for benchmark in benchmarks:
        theirs = {path.resolve().parent for image in benchmark.images for path in (image.lr, image.hr) if path}
        for label in sources:
            if (folder / label / benchmark.name).resolve() in theirs:
                raise UserError(
                    f"SR images would be written into {folder / label / benchmark.name}, where {benchmark.name}'s own "
                    "are; give another --output_path"
                )
    path = folder / RESULTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(path.read_text())["weights"] if path.exists() else []
        earlier_sources = {weights["label"]: weights["source"] for weights in earlier}
        scored = {name for weights in earlier for name, scores in weights["benchmarks"].items() if scores["mean"]}
    except OSError as error:
        raise UserError(f"the folder of results {folder} cannot be used ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is not a file of results; give another --output_path") from None
    if earlier and earlier_sources != sources:
        raise UserError(
            f"{folder} holds the results of {', '.join(map(str, earlier_sources.values()))}; give another --output_path"
        )
    lost = sorted(scored - {benchmark.name for benchmark in benchmarks})
    if lost:
        raise UserError(
            f"{folder} holds scores on {', '.join(lost)}, which would be lost; name them too, or give another "
            "--output_path"
        )


def write(
    folder: Path,
    results: list[Result],
    *,
    metrics: dict[str, Metric],
    benchmarks: list[Benchmark],
    settings: dict[str, Any],
) -> None:
    """Write results.json, .csv and .md, and the report.

    Args:
        settings: how the images were upscaled, for results.json.

    Raises:
        UserError: a file cannot be written, or an image not be read again.
    """
    found = {"settings": settings, **as_json(results, metrics)}
    write_text(folder / RESULTS, json.dumps(found, indent=2) + "\n")
    write_text(folder / "results.csv", as_csv(results, metrics))
    write_text(folder / "results.md", as_markdown(results, metrics))
    title = ", ".join(result.label for result in results)
    write_report(folder / "report.html", results, benchmarks=benchmarks, metrics=metrics, sr_root=folder, title=title)
