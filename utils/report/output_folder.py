"""The output folder of `test.py`: label/benchmark/image.png, the data files and the report."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sed_sr.data.benchmarks import Benchmark
from sed_sr.data.files import write_text
from sed_sr.data.photographs import check_side
from sed_sr.options.errors import UserError

RESULTS, CSV, MARKDOWN, REPORT = "results.json", "results.csv", "results.md", "report.html"
MAX_NAME_BYTES = 239  # of an image: file systems allow 255 bytes, and temporary names are a little longer


def check_output_folder(folder: Path, sources: Mapping[str, str], benchmarks: Sequence[Benchmark]) -> None:
    """Check that writing results into a folder overwrites nothing that cannot be made again; writes nothing.

    Args:
        sources: file, or `bicubic`, by label.
        benchmarks: to be upscaled.

    Raises:
        UserError: the name of an image is too long; images of the benchmarks are in the folder of the SR images; or the
            folder is a file, or contains results of other weights, scores on other benchmarks, or other files with the
            names of ours.
    """
    for benchmark in benchmarks:
        for label in sources:
            _check_image_folder(folder / label, benchmark)
    if os.path.isfile(folder):  # False, and no error, if the name is too long for a file system
        raise UserError(f"the output folder {folder} is a file; give another --output_path")
    if os.path.exists(folder / RESULTS):
        _check_earlier_results(folder / RESULTS, sources, benchmarks)
        return
    names = (RESULTS, CSV, MARKDOWN, REPORT, *sources)
    existing = next((name for name in names if os.path.exists(folder / name)), None)
    if existing is not None:
        raise UserError(
            f"{folder / existing} exists already, without a {RESULTS} that says where it is from; "
            "give another --output_path"
        )


def check_formats(benchmarks: Sequence[Benchmark], *, scale: int) -> None:
    """Raise UserError if the SR of an image is too large for the format of its file."""
    for benchmark in benchmarks:
        for image in benchmark.images:
            check_side(image.lr, suffix=Path(image.sr_name).suffix, scale=scale)


def create_output_folder(folder: Path, sources: Mapping[str, str]) -> None:
    """Create the folder with a results.json that names its weights. Raises UserError if that fails."""
    if os.path.exists(folder / RESULTS):
        return
    # After an interruption, the next evaluation recognizes the images in the folder by this file.
    weights = [{"label": label, "source": source, "benchmarks": {}} for label, source in sources.items()]
    write_text(folder / RESULTS, json.dumps({"weights": weights}, indent=2) + "\n")


def _check_image_folder(folder: Path, benchmark: Benchmark) -> None:
    """Raise UserError if SR images of a benchmark cannot be written into the folder of one candidate."""
    # realpath, because Path.resolve raises an error for a symbolic link that leads to itself.
    resolved = Path(os.path.realpath(folder))
    paths = [path for image in benchmark.images for path in (image.lr, image.hr) if path]
    if any(resolved in Path(os.path.realpath(path)).parents for path in paths):
        raise UserError(
            f"SR images would be written into {folder}, which contains the input images of {benchmark.name}; "
            "give another --output_path"
        )
    for image in benchmark.images:
        if len(os.fsencode(os.path.basename(image.sr_name))) > MAX_NAME_BYTES:
            raise UserError(
                f"cannot write {folder / benchmark.name / image.sr_name}: the name is too long; rename {image.lr}"
            )


def _check_earlier_results(path: Path, sources: Mapping[str, str], benchmarks: Sequence[Benchmark]) -> None:
    """Raise UserError unless the results at `path` are of these weights, and on none but these benchmarks."""
    try:
        earlier = json.loads(path.read_text("utf-8"))["weights"]
        earlier_sources = {weights["label"]: str(weights["source"]) for weights in earlier}
        scored = {name for weights in earlier for name, scores in weights["benchmarks"].items() if scores["mean"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is not a results file of test.py; give another --output_path") from None
    # Absolute paths: relative spellings of one path are the same file.
    theirs, ours = (
        {label: os.path.abspath(source) for label, source in each.items()} for each in (earlier_sources, sources)
    )
    if theirs != ours:
        raise UserError(
            f"{path.parent} contains the results of {', '.join(earlier_sources.values())}; give another --output_path"
        )
    lost = sorted(scored - {benchmark.name for benchmark in benchmarks})
    if lost:
        raise UserError(
            f"{path.parent} contains scores on {', '.join(lost)}, which would be lost; give these benchmarks as well, "
            "or another --output_path"
        )
