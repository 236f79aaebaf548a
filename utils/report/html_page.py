"""The report of an evaluation: one self-contained HTML file for any browser.

Its layout and behaviour are in page.html, .css and .js in this folder; this file adds the content.
"""

import base64
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sed_sr.data.benchmarks import Benchmark, BenchmarkImage
from sed_sr.data.files import atomic_writer
from sed_sr.data.images import image_size, read_rgb
from sed_sr.data.photographs import Photograph, as_pillow, over_white
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.photographs import upscale_photographs
from sed_sr.utils.evaluation.results import Result
from sed_sr.utils.evaluation.upscaler import bicubic
from sed_sr.utils.report.extra_pictures import NO_EXTRA_PICTURES, ExtraPictures
from sed_sr.utils.report.tables import score_tables

MAX_PICTURE_BYTES = 256 * 2**20  # of all pictures in a report
MAX_PX = 16_000_000  # of an SR image in it
THUMBNAIL_PX = 128
PNG_COMPRESSION_LEVEL = 3
PAGE = Path(__file__).with_name("page.html")


def write_report(
    path: Path,
    results: list[Result],
    *,
    benchmarks: list[Benchmark],
    metrics: dict[str, Metric],
    sr_root: Path,
    title: str,
    extra_pictures: ExtraPictures = NO_EXTRA_PICTURES,
) -> None:
    """Write the report: tables, scatter plots, and a viewer that compares the images.

    Pictures are embedded up to a limit, the worst images of each benchmark first. For the other images, the report has
    the scores and the paths of the files. Images that no candidate upscaled are left out.

    Args:
        path: of the HTML file.
        results: one for each candidate, at least one; they contain the `benchmarks` of their scale.
        sr_root: the folder of the SR images, `label/benchmark/image.png` or another `sr_name`.
        extra_pictures: of each image; they count towards the limit.

    Raises:
        WriteError: the file cannot be written.
        UserError: an image cannot be read.
    """
    has_ground_truth = any(benchmark.has_ground_truth for benchmark in benchmarks)
    extras = extra_pictures if has_ground_truth else NO_EXTRA_PICTURES
    versions = _Versions(results, extras, has_ground_truth=has_ground_truth)
    sections = [_Section(benchmark, results, metrics, sr_root) for benchmark in benchmarks]
    # The top of the page needs the numbers of all pictures: until it is written, they are in a temporary file.
    with atomic_writer(path) as page, tempfile.TemporaryFile(dir=path.parent) as pictures:
        album = _Album(pictures)
        for entry in _alternate([section.worst_first(versions.ranked_by) for section in sections]):
            entry.pictures = versions.embed(entry, album)
        pictures.seek(0)
        benchmarks_json = [section.as_json(path.parent) for section in sections]
        _write_page(page, {"title": title, **versions.as_json(), "benchmarks": benchmarks_json}, pictures)


@dataclass
class _ImageEntry:
    """An image, its results, and its pictures in the report."""

    image: BenchmarkImage
    sr: list[Path | None]  # of each candidate
    scores: list[dict[str, float]]  # of each candidate
    pictures: dict[str, Any] | None = None  # None: not embedded


class _Section:
    """A benchmark and its scores."""

    def __init__(self, benchmark: Benchmark, results: list[Result], metrics: dict[str, Metric], sr_root: Path):
        self._name = benchmark.name
        self._weights = [number for number, result in enumerate(results) if self._name in result.benchmarks]
        self._results = [
            replace(results[number], benchmarks={self._name: results[number].benchmarks[self._name]})
            for number in self._weights
        ]
        images = [result.benchmarks[self._name].images if self._name in result.benchmarks else {} for result in results]
        scored = {metric for scores in images for row in scores.values() for metric in row}
        self._metrics = {name: metric for name, metric in metrics.items() if name in scored}
        self._entries = []
        for image in benchmark.images:
            files = [
                sr_root / result.label / self._name / image.sr_name if self._name in result.benchmarks else None
                for result in results
            ]
            sr = [file if file is not None and file.is_file() else None for file in files]
            if any(sr):
                self._entries.append(_ImageEntry(image, sr, [scores.get(image.name, {}) for scores in images]))

    def worst_first(self, candidate: int) -> list[_ImageEntry]:
        """The images sorted by the first metric of a candidate; those without a score come last.

        If the candidate has another scale, the first one of this scale replaces it.
        """
        if not self._metrics:
            return self._entries
        candidate = candidate if candidate in self._weights else self._weights[0]
        metric = next(iter(self._metrics.values()))

        def rank(entry: _ImageEntry) -> tuple[bool, float]:
            score = entry.scores[candidate].get(metric.name, math.nan)
            return (True, 0) if math.isnan(score) else (False, -score if metric.lower_is_better else score)

        return sorted(self._entries, key=rank)

    def as_json(self, folder: Path) -> dict[str, Any]:
        """The data for a page in this folder."""
        fields = ("name", "title", "decimals", "lower_is_better")
        return {
            "name": self._name,
            "weights": self._weights,
            "metrics": [{field: getattr(metric, field) for field in fields} for metric in self._metrics.values()],
            "tables": [
                {
                    "title": table.title,
                    "columns": table.columns,
                    "rows": [asdict(row) for rows in table.sections.values() for row in rows],
                    "caption": table.caption,
                }
                for table in score_tables(self._results, self._metrics)
            ],
            "remarks": [
                f"{result.label}: {remark}"
                for result in self._results
                for remark in (*result.benchmarks[self._name].failures, *result.benchmarks[self._name].notes)
            ],
            "images": [
                {
                    "name": entry.image.name,
                    "scores": [{name: _number(score) for name, score in row.items()} for row in entry.scores],
                    "files": [os.path.relpath(file, folder) for file in entry.sr if file],
                    "pictures": entry.pictures,
                }
                for entry in self._entries
            ],
        }


class _Versions:
    """The versions of each image: LR, bicubic, SR of each candidate, HR, and extra pictures."""

    def __init__(self, results: list[Result], extras: ExtraPictures, *, has_ground_truth: bool):
        self._results, self._extras = results, extras
        self._adds_bicubic = all(result.source != "bicubic" for result in results)
        self._has_ground_truth = has_ground_truth
        # The candidate whose worst images come first: bicubic only if there are no others.
        self.ranked_by = next((number for number, result in enumerate(results) if result.source != "bicubic"), 0)

    def as_json(self) -> dict[str, Any]:
        """The data for the page."""
        before = ["LR", "bicubic"] if self._adds_bicubic else ["LR"]
        compared = [*before, *(result.label for result in self._results), *["HR"] * self._has_ground_truth]
        after_lr = [*["bicubic"] * self._adds_bicubic, *(result.source for result in self._results)]
        bicubic = [version for version, source in enumerate(after_lr, 1) if source == "bicubic"]  # one for each scale
        return {
            "versions": [*compared, *self._extras.titles],
            "compared": len(compared),
            "note": self._extras.note,
            "references": [*[len(compared) - 1] * self._has_ground_truth, *bicubic],
            "ranked_by": self.ranked_by,
            "weights": [
                {"label": result.label, "about": result.about, "source": result.source, "version": len(before) + number}
                for number, result in enumerate(self._results)
            ],
        }

    def embed(self, entry: _ImageEntry, album: "_Album") -> dict[str, Any] | None:
        """Add all versions of an image to the album; None if it is too large or the album is full."""
        sizes = [image_size(file) for file in entry.sr if file]
        if album.full or max(height * width for height, width in sizes) > MAX_PX:
            return None
        lr = entry.image.read_lr()
        hr = None if entry.image.hr is None else read_rgb(entry.image.hr)
        scale = round(sizes[0][0] / len(lr.pixels))
        height, width = sizes[0]
        if hr is not None:  # scores are of the area that both share
            hr = hr[:height, :width]
            height, width, _ = hr.shape
        pngs = [_png(lr)]
        if self._adds_bicubic:
            pngs += map(_png, upscale_photographs(bicubic(scale), [lr], lambda note: None))
        pngs += [None if file is None else file.read_bytes() for file in entry.sr]
        if self._has_ground_truth:
            pngs.append(None if hr is None else _png(Photograph(hr)))
        pngs += self._extra_pngs(entry, hr)
        numbers = album.add(pngs)
        if numbers is None:
            return None
        return {
            "numbers": numbers,
            "size": [width, height],
            "scale": scale,
            "thumbnail": _thumbnail(lr if hr is None else Photograph(hr)),
        }

    def _extra_pngs(self, entry: _ImageEntry, hr: np.ndarray | None) -> list[bytes | None]:
        if hr is None or not self._extras.titles:
            return [None] * len(self._extras.titles)
        drawn = self._extras.draw(hr, [None if file is None else read_rgb(file) for file in entry.sr])
        return [None if picture is None else _png(Photograph(picture)) for picture in drawn]


class _Album:
    """The pictures of a report, numbered in the order in which they are added."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._count = 0
        self._left_bytes = MAX_PICTURE_BYTES

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._left_bytes < 0

    def add(self, pngs: list[bytes | None]) -> list[int | None] | None:
        """Add pictures, of which some may be None; returns their numbers, or None if they do not fit."""
        self._left_bytes -= sum(len(png) for png in pngs if png is not None)
        return None if self.full else [None if png is None else self._write(png) for png in pngs]

    def _write(self, png: bytes) -> int:
        self._count += 1
        self._file.write(b'<script type="text/plain" id="picture-%d">' % self._count)
        self._file.write(base64.b64encode(png))
        self._file.write(b"</script>\n")
        return self._count


def _alternate(lists: list[list[_ImageEntry]]) -> Iterator[_ImageEntry]:
    """The first of each list, then the second of each, ..., so that benchmarks share the limit evenly."""
    for row in itertools.zip_longest(*lists):
        yield from (entry for entry in row if entry is not None)


def _number(score: float) -> float | str:
    """A score for JSON, which has no infinity: JavaScript's Number() parses this word."""
    if math.isfinite(score):
        return score
    return "Infinity" if score > 0 else "NaN"


def _png(image: Photograph) -> bytes:
    buffer = BytesIO()
    as_pillow(image).save(buffer, "PNG", compress_level=PNG_COMPRESSION_LEVEL, icc_profile=image.icc_profile)
    return buffer.getvalue()


def _thumbnail(image: Photograph) -> str:
    """A small JPEG as a data URL."""
    small, buffer = over_white(image), BytesIO()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _write_page(page: BinaryIO, report: dict[str, Any], pictures: BinaryIO) -> None:
    """Write the page with its style, script, data and pictures."""
    top, bottom = PAGE.read_text("utf-8").split("{{pictures}}")
    top = top.replace("{{style}}", PAGE.with_suffix(".css").read_text("utf-8"))
    top = top.replace("{{script}}", PAGE.with_suffix(".js").read_text("utf-8"))
    # Last, so that nothing in names is replaced. "<" is escaped, so that no name ends the script block.
    top = top.replace("{{report}}", json.dumps(report, allow_nan=False).replace("<", "\\u003c"))
    page.write(top.encode())
    shutil.copyfileobj(pictures, page)
    page.write(bottom.encode())
