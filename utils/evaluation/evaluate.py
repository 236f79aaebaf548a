"""Upscale a benchmark and score it, its images shared out over the processes.

`test.py` and the validations of a training run both do it here, so that they give a generator the same scores.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from threading import Event

import numpy as np
import torch

from sed_sr.data.benchmarks import Benchmark, BenchmarkImage
from sed_sr.data.images import image_size, read_rgb, write_image
from sed_sr.data.tensors import to_tensor
from sed_sr.models.precision import without_tf32
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.metrics import Metric
from sed_sr.utils.evaluation.upscaler import OutOfMemory, Upscale
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import unless_out_of_memory


@dataclass(frozen=True)
class BenchmarkScores:
    """Scores of one benchmark: of each image by name, and their means."""

    images: dict[str, dict[str, float]]  # of those that were upscaled; a score that an image lacks is left out
    failures: tuple[str, ...] = ()  # a sentence for each image that was not upscaled, and for each score that failed
    notes: tuple[str, ...] = ()  # what the user should know of images that were upscaled
    not_upscaled: int = 0  # images

    @property
    def total(self) -> int:
        """The number of images of the benchmark."""
        return len(self.images) + self.not_upscaled

    @property
    def counts(self) -> dict[str, int]:
        """The number of images that have a score, by metric; a metric that no image has is left out."""
        rows = sorted(self.images.values(), key=len, reverse=True)  # complete rows first: they have the usual order
        return dict(Counter(chain.from_iterable(rows)))

    @property
    def mean(self) -> dict[str, float]:
        """The mean of each metric over the images that have it, which may be fewer than all: see `counts`."""
        rows = self.images.values()
        return {
            metric: math.fsum(row[metric] for row in rows if metric in row) / count
            for metric, count in self.counts.items()
        }

    @property
    def complete_mean(self) -> dict[str, float]:
        """The means over all images of the benchmark, the only ones that can be compared with other means."""
        return {metric: mean for metric, mean in self.mean.items() if self.counts[metric] == self.total}


def evaluate(
    upscale: Upscale,
    benchmark: Benchmark,
    *,
    metrics: dict[str, Metric],
    device: torch.device,
    world: World,
    output: Path | None = None,
    on_image: Callable[[BenchmarkImage, np.ndarray], None] = lambda image, sr: None,
    stop: Callable[[], bool] = lambda: False,
    batch_size: int = 1,
) -> BenchmarkScores | None:
    """Upscale every image of a benchmark and score it, by all metrics where it has ground truth.

    The protocol is the paper's (see utils.metrics): SR rounded to 8 bits before it is scored. TF32 is off, whatever
    the process has set. Every rank takes its share of the images; the scores are gathered, so that every rank returns
    all of them. While images are upscaled, a thread reads the next one, and another one writes and scores those before.

    A failure does not end the evaluation: hours of training do not end in a validation. An image that cannot be read,
    or that memory does not suffice for, is left out of `images`. A score that cannot be computed, because the ground
    truth cannot be read, the image is too small, memory does not suffice or the result is not a number, is left out of
    the image's scores. `failures` has a sentence for each.

    Args:
        output: folder for the SR images, one PNG each.
        on_image: called with each image and its SR on the rank that made it, in order, once they are written.
        stop: asked before each batch whether to give up.
        batch_size: images that are upscaled together where they follow each other and are of one size.

    Returns:
        The scores; None on every rank if one of them was told to stop before its last image.
    """
    mine, failures, notes, stopped = {}, [], [], False

    def readable() -> Iterator[tuple[BenchmarkImage, np.ndarray]]:
        for image, reading in _read_ahead(benchmark.images[world.rank :: world.size]):
            try:
                yield image, reading.result()
            except UserError as error:
                failures.append((image.name, str(error)))

    def collect() -> None:
        while finishing:
            image, sr, future = finishing.popleft()
            mine[image.name], missing = future.result()
            failures.extend((image.name, sentence) for sentence in missing)
            on_image(image, sr)

    with world.raise_together(), without_tf32(), _worker() as (worker, ended):
        finish = partial(_finish, metrics=metrics, device=device, output=output, cancelled=ended.is_set)
        finishing = deque()  # the batch before
        for batch in _batches(readable(), batch_size):
            stopped = stop()
            if stopped:
                break
            try:
                results = upscale([lr for _, lr in batch], notes.append)
            except OutOfMemory as error:
                failures += [(image.name, f"{image.lr} could not be upscaled: {error}") for image, _ in batch]
                continue
            collect()
            for (image, _), sr in zip(batch, results, strict=True):
                finishing.append((image, sr, worker.submit(finish, image, sr)))
        collect()
    if world.any(stopped):
        return None
    shares = world.gather((mine, failures, notes))
    images = {name: scores for share, _, _ in shares for name, scores in share.items()}
    failures = sorted((failure for _, share, _ in shares for failure in share), key=itemgetter(0))
    notes = dict.fromkeys(text for _, _, texts in shares for text in texts)  # ranks note the same
    return BenchmarkScores(
        dict(sorted(images.items())),
        failures=tuple(sentence for _, sentence in failures),
        notes=tuple(notes),
        not_upscaled=len(benchmark.images) - len(images),
    )


def check_best_by(metric: Metric, benchmark: Benchmark, *, scale: int) -> str:
    """Check that the metric of `validation.best_by` can score every image of its benchmark, from the images' headers.

    The metric is tried on noise of the size of the smallest image.

    Args:
        benchmark: the first of `validation.benchmarks`.
        scale: of the generator.

    Returns:
        What was checked, in words.

    Raises:
        UserError: an image has no ground truth, which the metric needs, or is too small for it.
    """
    sizes = {}
    for image in benchmark.images:
        height, width = (scale * side for side in image_size(image.lr))
        if image.hr is None and metric.needs_ground_truth:
            raise UserError(
                f"validation.best_by is {metric.name}, which needs ground truth (HR), but image {image.name} of "
                f"benchmark {benchmark.name} ({image.lr}, {width}x{height} px after upscaling) has none; put another "
                "benchmark first, or choose a metric without reference or validation.best_by: null"
            )
        sizes[image] = (height, width) if image.hr is None else _common_size((height, width), image_size(image.hr))
    smallest = min(sizes, key=lambda image: sorted(sizes[image]))
    height, width = sizes[smallest]
    noise = torch.Generator().manual_seed(0)
    sr, hr = torch.randint(256, (2, 3, height, width), generator=noise, dtype=torch.uint8)
    try:
        unless_out_of_memory(partial(metric.compute, sr, hr if metric.needs_ground_truth else None))
    except UserError as error:
        raise UserError(
            f"validation.best_by is {metric.name}, which cannot score image {smallest.name} of benchmark "
            f"{benchmark.name} ({smallest.hr or smallest.lr}, {width}x{height} px): {error}"
        ) from error
    return f"{metric.name} on {benchmark.name}, whose smallest image has {width}x{height} px"


@contextmanager
def _worker() -> Iterator[tuple[ThreadPoolExecutor, Event]]:
    """One thread beside the caller's. When the block ends early, what the thread has not begun is dropped.

    The event tells what it is at work on that nobody waits for it any more.
    """
    thread, ended = ThreadPoolExecutor(max_workers=1), Event()
    try:
        yield thread, ended
    finally:
        ended.set()
        thread.shutdown(cancel_futures=True)


def _read_ahead(images: Sequence[BenchmarkImage]) -> Iterator[tuple[BenchmarkImage, Future[np.ndarray]]]:
    """The LR of each image. While the caller is at work on one, the next is read, and none beyond it."""
    with _worker() as (worker, _):
        started = ((image, worker.submit(read_rgb, image.lr)) for image in images)
        for (image, reading), _ in pairwise(chain(started, [None])):
            yield image, reading


def _batches(
    images: Iterable[tuple[BenchmarkImage, np.ndarray]], size: int
) -> Iterator[list[tuple[BenchmarkImage, np.ndarray]]]:
    """At most `size` images that follow each other and are equally large."""
    batch = []
    for image, lr in images:
        if batch and lr.shape != batch[0][1].shape:
            yield batch
            batch = []
        batch.append((image, lr))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _finish(
    image: BenchmarkImage,
    sr: np.ndarray,
    *,
    metrics: dict[str, Metric],
    device: torch.device,
    output: Path | None,
    cancelled: Callable[[], bool],
) -> tuple[dict[str, float], list[str]]:
    """Write an SR image and score it; return its scores, and a sentence about each score that failed."""
    if output is not None:
        write_image(output / f"{image.name}.png", sr, cancelled=cancelled)
    wanted = {name: metric for name, metric in metrics.items() if image.hr is not None or not metric.needs_ground_truth}
    hr, scores, missing = None, {}, []
    comparing = [name for name, metric in wanted.items() if metric.needs_ground_truth]
    if comparing:
        try:
            hr = read_rgb(image.hr)
        except UserError as error:
            missing.append(f"{image.hr} has no {', '.join(comparing)}: {error}")
            wanted = {name: metric for name, metric in wanted.items() if name not in comparing}
    for name, metric in wanted.items():
        try:
            scores[name] = _score(metric, sr, hr, device)
        except UserError as error:
            missing.append(f"{image.hr or image.lr} has no {name}: {error}")
    return scores, missing


def _score(metric: Metric, sr: np.ndarray, hr: np.ndarray | None, device: torch.device) -> float:
    """Of what SR and HR have in common, from the top left, where the sides of HR are no multiples of the scale.

    Raises UserError where the metric cannot score the image, for instance because it is too small.
    """

    def compute() -> float:
        if hr is None:
            return metric.compute(to_tensor(sr).to(device), None)
        height, width = _common_size(sr.shape[:2], hr.shape[:2])
        return metric.compute(*(to_tensor(image[:height, :width]).to(device) for image in (sr, hr)))

    score = unless_out_of_memory(compute)
    if score is None:
        raise OutOfMemory(f"out of memory on {device}")
    if math.isnan(score):
        raise UserError("the result is not a number")
    return score


def _common_size(sr: tuple[int, int], hr: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that two images have in common."""
    return min(sr[0], hr[0]), min(sr[1], hr[1])
