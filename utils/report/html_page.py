"""The report of an evaluation: one HTML file with all that it needs inside, to be looked at in any browser.

How it looks and what it does stands in page.html, .css and .js beside this file; here it gets its content.
"""

import base64
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from sed_sr.data.benchmarks import Benchmark, BenchmarkImage
from sed_sr.data.files import atomic_writer
from sed_sr.data.images import image_size, read_rgb
from sed_sr.data.imresize import imresize
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.results import Result, score_tables

PICTURES_LIMIT_BYTES = 256 * 2**20  # of all pictures in a report
LARGEST_PX = 16_000_000  # of an SR image in it
THUMBNAIL_PX = 128
PNG_COMPRESSION_LEVEL = 3
PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Extras:
    """Further pictures of each image with ground truth, beside LR, SR and HR and as large as HR."""

    titles: tuple[str, ...]
    note: str  # what they show, for people
    # From HR, (H, W, 3) uint8, and SR of each of the weights, at least as large (None: there is none), a picture for
    # each title; None in place of one that cannot be had.
    draw: Callable[[np.ndarray, list[np.ndarray | None]], list[np.ndarray | None]]


NO_EXTRAS = Extras((), "", lambda hr, sr: [])


def write_report(
    path: Path,
    results: list[Result],
    *,
    benchmarks: list[Benchmark],
    metrics: dict[str, Metric],
    sr_root: Path,
    title: str,
    extras: Extras = NO_EXTRAS,
) -> None:
    """Write the report of some weights on some benchmarks: tables, scatter plots, and every image to be compared.

    Pictures are put into the file up to a limit, the worst images of each benchmark first; the others keep their
    scores, and the report says where they lie. An image that none of the weights upscaled is not in it.

    Args:
        path: of the HTML file.
        results: one for each weights, at least one; all of them have all `benchmarks`.
        sr_root: the folder of the SR images, `label/benchmark/image.png`.
        extras: further pictures; they count towards the limit.

    Raises:
        WriteError: the file cannot be written.
        UserError: an image cannot be read.
    """
    has_ground_truth = any(benchmark.has_ground_truth for benchmark in benchmarks)
    versions = _Versions(results, extras if has_ground_truth else NO_EXTRAS, has_ground_truth=has_ground_truth)
    sections = [_Section(benchmark, results, metrics, sr_root) for benchmark in benchmarks]
    # The top of the page says what became of every picture: until it is written, they wait in a file.
    with atomic_writer(path) as page, tempfile.TemporaryFile(dir=path.parent) as pictures:
        album = _Album(pictures)
        for subject in _in_turn([section.worst_first(versions.judged) for section in sections]):
            subject.pictures = versions.embed(subject, album)
        pictures.seek(0)
        described = [section.described(path.parent) for section in sections]
        _write_page(page, {"title": title, **versions.described(), "benchmarks": described}, pictures)


@dataclass
class _Subject:
    """An image, what was made of it, and what the page shows of that."""

    image: BenchmarkImage
    sr: list[Path | None]  # of each of the weights
    scores: list[dict[str, float]]  # of each of the weights
    pictures: dict[str, Any] | None = None  # None: left out of the report


class _Section:
    """A benchmark and its scores."""

    def __init__(self, benchmark: Benchmark, results: list[Result], metrics: dict[str, Metric], sr_root: Path):
        self._name = benchmark.name
        self._results = [replace(result, benchmarks={self._name: result.benchmarks[self._name]}) for result in results]
        images = [result.benchmarks[self._name].images for result in results]
        scored = {metric for scores in images for row in scores.values() for metric in row}
        self._metrics = {name: metric for name, metric in metrics.items() if name in scored}
        self._subjects = []
        for image in benchmark.images:
            files = [sr_root / result.label / self._name / f"{image.name}.png" for result in results]
            sr = [file if file.is_file() else None for file in files]
            if any(sr):
                self._subjects.append(_Subject(image, sr, [scores.get(image.name, {}) for scores in images]))

    def worst_first(self, judged: int) -> list[_Subject]:
        """The images by their first metric, as the weights of this number have it; those without it come last."""
        if not self._metrics:
            return self._subjects
        metric = next(iter(self._metrics.values()))

        def rank(subject: _Subject) -> tuple[bool, float]:
            score = subject.scores[judged].get(metric.name, math.nan)
            return (True, 0) if math.isnan(score) else (False, -score if metric.lower_is_better else score)

        return sorted(self._subjects, key=rank)

    def described(self, folder: Path) -> dict[str, Any]:
        """What the page in this folder has to know."""
        fields = ("name", "title", "decimals", "lower_is_better")
        return {
            "name": self._name,
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
                    "name": subject.image.name,
                    "scores": [{name: _number(score) for name, score in row.items()} for row in subject.scores],
                    "files": [os.path.relpath(file, folder) for file in subject.sr if file],
                    "pictures": subject.pictures,
                }
                for subject in self._subjects
            ],
        }


class _Versions:
    """What can be compared of an image: LR, bicubic, SR of each of the weights, HR, and further pictures of it."""

    def __init__(self, results: list[Result], extras: Extras, *, has_ground_truth: bool):
        self._results, self._extras = results, extras
        self._adds_bicubic = all(result.source != "bicubic" for result in results)
        self._has_ground_truth = has_ground_truth
        # The weights whose worst images come first: bicubic's are of interest only where there are no others.
        self.judged = next((number for number, result in enumerate(results) if result.source != "bicubic"), 0)

    def described(self) -> dict[str, Any]:
        """What the page has to know."""
        before = ["LR", "bicubic"] if self._adds_bicubic else ["LR"]
        compared = [*before, *(result.label for result in self._results), *["HR"] * self._has_ground_truth]
        after_lr = [*["bicubic"] * self._adds_bicubic, *(result.source for result in self._results)]
        bicubic = 1 + after_lr.index("bicubic")
        return {
            "versions": [*compared, *self._extras.titles],
            "compared": len(compared),
            "note": self._extras.note,
            "references": [len(compared) - 1, bicubic] if self._has_ground_truth else [bicubic],
            "judged": self.judged,
            "weights": [
                {"label": result.label, "about": result.about, "source": result.source, "version": len(before) + number}
                for number, result in enumerate(self._results)
            ],
        }

    def embed(self, subject: _Subject, album: "_Album") -> dict[str, Any] | None:
        """Put an image into the album in all versions; None where it has no place there."""
        sizes = [image_size(file) for file in subject.sr if file]
        if album.full or max(height * width for height, width in sizes) > LARGEST_PX:
            return None
        lr = read_rgb(subject.image.lr)
        hr = None if subject.image.hr is None else read_rgb(subject.image.hr)
        scale = round(sizes[0][0] / lr.shape[0])
        height, width = sizes[0]
        if hr is not None:  # scored is what both have
            hr = hr[:height, :width]
            height, width, _ = hr.shape
        pngs = [_png(lr)]
        if self._adds_bicubic:
            pngs.append(_png(imresize(lr, scale=scale)))
        pngs += [None if file is None else file.read_bytes() for file in subject.sr]
        if self._has_ground_truth:
            pngs.append(None if hr is None else _png(hr))
        pngs += self._drawn(subject, hr)
        numbers = album.add(pngs)
        if numbers is None:
            return None
        return {
            "numbers": numbers,
            "size": [width, height],
            "scale": scale,
            "thumbnail": _thumbnail(lr if hr is None else hr),
        }

    def _drawn(self, subject: _Subject, hr: np.ndarray | None) -> list[bytes | None]:
        """The further pictures of an image."""
        if hr is None or not self._extras.titles:
            return [None] * len(self._extras.titles)
        drawn = self._extras.draw(hr, [None if file is None else read_rgb(file) for file in subject.sr])
        return [None if picture is None else _png(picture) for picture in drawn]


class _Album:
    """The pictures of a report, numbered, in the order in which they were added."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._count = 0
        self._left_bytes = PICTURES_LIMIT_BYTES

    @property
    def full(self) -> bool:
        """Whether no picture is taken any more."""
        return self._left_bytes < 0

    def add(self, pngs: list[bytes | None]) -> list[int | None] | None:
        """The numbers of the pictures (None for None); None where they do not fit, nor any after them."""
        self._left_bytes -= sum(len(png) for png in pngs if png is not None)
        return None if self.full else [None if png is None else self._write(png) for png in pngs]

    def _write(self, png: bytes) -> int:
        self._count += 1
        self._file.write(b'<script type="text/plain" id="picture-%d">' % self._count)
        self._file.write(base64.b64encode(png))
        self._file.write(b"</script>\n")
        return self._count


def _in_turn(lists: list[list[_Subject]]) -> Iterator[_Subject]:
    """The first of each list, then the second of each, ...: a limit is shared evenly."""
    for row in itertools.zip_longest(*lists):
        yield from (subject for subject in row if subject is not None)


def _number(score: float) -> float | str:
    """A score for JSON, which has no infinity: JavaScript's Number() makes one of the word."""
    if math.isfinite(score):
        return score
    return "Infinity" if score > 0 else "NaN"


def _png(rgb: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", compress_level=PNG_COMPRESSION_LEVEL)
    return buffer.getvalue()


def _thumbnail(rgb: np.ndarray) -> str:
    """A small JPEG file of an image, as a data URL."""
    small, buffer = Image.fromarray(rgb), BytesIO()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _write_page(page: BinaryIO, report: dict[str, Any], pictures: BinaryIO) -> None:
    """Write the page with its style, its script, what it has to know, and the blocks of the pictures."""
    top, bottom = PAGE.read_text("utf-8").split("{{pictures}}")
    top = top.replace("{{style}}", PAGE.with_suffix(".css").read_text("utf-8"))
    top = top.replace("{{script}}", PAGE.with_suffix(".js").read_text("utf-8"))
    # Names are in it: last, so that nothing in them is replaced; and none of them ends the block, for "<" is escaped.
    top = top.replace("{{report}}", json.dumps(report, allow_nan=False).replace("<", "\\u003c"))
    page.write(top.encode())
    shutil.copyfileobj(pictures, page)
    page.write(bottom.encode())
