"""The folder of what `test.py` makes: label/benchmark/image.png, and what was found out about them."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sed_sr.data.benchmarks import Benchmark
from sed_sr.data.files import write_text
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.results import Result, as_csv, as_json, as_markdown

RESULTS, REPORT = "results.json", "report.html"
WRITTEN = (RESULTS, "results.csv", "results.md", REPORT)
LONGEST_NAME_BYTES = 235  # of an image; names of files have 255 bytes, and the temporary one is a little longer


def refuse_loss(folder: Path, sources: Mapping[str, str], benchmarks: Sequence[Benchmark]) -> None:
    """Make sure that nothing will be lost if results are written into a folder; nothing is written by this.

    Args:
        sources: file, or `bicubic`, by label.
        benchmarks: that are about to be upscaled.

    Raises:
        UserError: an image's name is too long; SR images would take the place of those of the benchmarks; or the
            folder is none, or holds results of other weights, scores of other benchmarks, or files of somebody else
            under the names of ours.
    """
    for benchmark in benchmarks:
        for label in sources:
            _refuse_images(folder / label / benchmark.name, benchmark)
    if os.path.isfile(folder):  # which is False, and no error, for a name too long to be one
        raise UserError(f"the folder of results {folder} is a file; give another --output_path")
    if os.path.exists(folder / RESULTS):
        _refuse_other_results(folder / RESULTS, sources, benchmarks)
        return
    foreign = next((name for name in (*WRITTEN, *sources) if os.path.exists(folder / name)), None)
    if foreign is not None:
        raise UserError(
            f"{folder / foreign} is there, and no {RESULTS} that tells whose it is; give another --output_path"
        )


def claim(folder: Path, sources: Mapping[str, str]) -> None:
    """Make the folder, and mark it as that of these weights. Raises UserError where that cannot be."""
    if os.path.exists(folder / RESULTS):
        return
    # An evaluation that is interrupted leaves this: the next one knows the images in the folder for its own.
    begun = [{"label": label, "source": source, "benchmarks": {}} for label, source in sources.items()]
    write_text(folder / RESULTS, json.dumps({"weights": begun}, indent=2) + "\n")


def _refuse_images(target: Path, benchmark: Benchmark) -> None:
    """Raise UserError where SR images of a benchmark cannot be written into `target`."""
    ours = {path.resolve().parent for image in benchmark.images for path in (image.lr, image.hr) if path}
    if target.resolve() in ours:
        raise UserError(
            f"SR images would be written into {target}, where {benchmark.name}'s own are; give another --output_path"
        )
    for image in benchmark.images:
        if len(os.fsencode(image.name)) > LONGEST_NAME_BYTES:
            raise UserError(f"cannot write {target / image.name}.png: that name is too long; rename {image.lr}")


def _refuse_other_results(path: Path, sources: Mapping[str, str], benchmarks: Sequence[Benchmark]) -> None:
    """Raise UserError unless the results at `path` are of these weights, and of no other benchmarks."""
    try:
        earlier = json.loads(path.read_text("utf-8"))["weights"]
        earlier_sources = {weights["label"]: str(weights["source"]) for weights in earlier}
        scored = {name for weights in earlier for name, scores in weights["benchmarks"].items() if scores["mean"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is not a file of results; give another --output_path") from None
    # two spellings of one path are one file
    theirs, ours = (
        {label: os.path.abspath(source) for label, source in each.items()} for each in (earlier_sources, sources)
    )
    if theirs != ours:
        raise UserError(
            f"{path.parent} holds the results of {', '.join(earlier_sources.values())}; give another --output_path"
        )
    lost = sorted(scored - {benchmark.name for benchmark in benchmarks})
    if lost:
        raise UserError(
            f"{path.parent} holds scores on {', '.join(lost)}, which would be lost; name them too, or give another "
            "--output_path"
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
    found = {"settings": settings, **as_json(results, metrics)}
    write_text(folder / RESULTS, json.dumps(found, indent=2) + "\n")
    write_text(folder / "results.csv", as_csv(results, metrics))
    write_text(folder / "results.md", as_markdown(results, metrics))
