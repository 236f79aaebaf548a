"""The result of an evaluation: scores of each image, by benchmark, and their means."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain


@dataclass(frozen=True)
class BenchmarkScores:
    """Scores of one benchmark: of each image by name, and their means."""

    images: dict[str, dict[str, float]]  # of the upscaled images; a missing score has no entry
    failures: tuple[str, ...] = ()  # a sentence for each image that was not upscaled and for each missing score
    notes: tuple[str, ...] = ()  # further information for the user
    not_upscaled: int = 0  # images

    @property
    def total(self) -> int:
        """The number of images of the benchmark."""
        return len(self.images) + self.not_upscaled

    @property
    def counts(self) -> dict[str, int]:
        """The number of images that have a score, by metric; without the metrics that no image has."""
        rows = sorted(self.images.values(), key=len, reverse=True)  # complete rows first: they have the usual order
        return dict(Counter(chain.from_iterable(rows)))

    @property
    def mean(self) -> dict[str, float]:
        """The mean of each metric over the images that have it. These may be fewer than all: see `counts`."""
        rows = self.images.values()
        return {
            metric: math.fsum(row[metric] for row in rows if metric in row) / count
            for metric, count in self.counts.items()
        }

    @property
    def complete_mean(self) -> dict[str, float]:
        """The means over all images of the benchmark; only these can be compared with other means."""
        return {metric: mean for metric, mean in self.mean.items() if self.counts[metric] == self.total}


@dataclass(frozen=True)
class Result:
    """The scores of one candidate."""

    label: str  # in tables, and the name of its folder
    source: str  # path of the weights, or "bicubic"
    scale: int
    about: str  # description for users
    paper_row: str | None  # the row of `paper_scores` to compare it with
    benchmarks: dict[str, BenchmarkScores]  # those of its scale

    def image_scores(self, benchmark: str, metric: str) -> dict[str, float]:
        """The scores of the images that have one, sorted by the images' names."""
        if benchmark not in self.benchmarks:
            return {}
        images = sorted(self.benchmarks[benchmark].images.items())
        return {image: scores[metric] for image, scores in images if metric in scores}


def by_scale(results: Sequence[Result]) -> dict[int, list[Result]]:
    """The results of each scale, the smallest scale first."""
    scales = sorted({result.scale for result in results})
    return {scale: [result for result in results if result.scale == scale] for scale in scales}


def scored_benchmarks(results: Sequence[Result]) -> dict[str, int]:
    """The benchmarks for which at least one candidate has a score, with their numbers of images."""
    return {name: scores.total for result in results for name, scores in result.benchmarks.items() if scores.mean}
