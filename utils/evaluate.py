"""Upscale a benchmark and score it, its images shared out over the processes."""

import math
from collections import deque
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

from data.benchmarks import Benchmark, BenchmarkImage
from data.images import read_rgb, to_tensor, write_image
from utils.distributed import World
from utils.errors import UserError
from utils.memory import unless_out_of_memory
from utils.metrics import Metric
from utils.upscaler import OutOfMemory, Upscale


@dataclass(frozen=True)
class BenchmarkScores:
    """Scores of one benchmark: of each image by name, and their means."""

    images: dict[str, dict[str, float]]  # empty scores where there is no ground truth
    failures: tuple[str, ...] = ()  # what was wrong with images that could not be upscaled, or not be scored
    notes: tuple[str, ...] = ()  # what the user should know of those that could

    @property
    def mean(self) -> dict[str, float]:
        """Of every metric, over the images; empty after a failure: a mean over some of them is nobody's score."""
        rows = list(self.images.values())
        if self.failures or not rows:
            return {}
        return {metric: math.fsum(row[metric] for row in rows) / len(rows) for metric in rows[0]}


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

    The protocol is the paper's (see utils.metrics): SR rounded to 8 bits before it is scored. Every rank takes its
    share of the images; the scores are gathered, so that every rank returns all of them. While images are upscaled, a
    thread reads the next one, and another one writes and scores those before.

    An LR image that cannot be read ends the evaluation of a benchmark; in a folder without ground truth it is one of
    the failures, and the others go on. An image, or a metric of it, that memory does not suffice for is a failure too,
    and so is an image that a metric cannot score; everything else goes on: hours of training do not end in a
    validation.

    Args:
        output: folder for the SR images, one PNG each.
        on_image: called with each image and its SR on the rank that made it, in order, once they are written.
        stop: asked before each batch whether to give up.
        batch_size: images that are upscaled together where they follow each other and are of one size.

    Returns:
        The scores; None on every rank if one of them was told to stop before its last image.
    """
    mine, failures, notes = {}, [], []
    stopped = False

    def readable() -> Iterator[tuple[BenchmarkImage, np.ndarray]]:
        for image, reading in _read_ahead(benchmark.images[world.rank :: world.size]):
            try:
                yield image, reading.result()
            except UserError as error:
                if image.hr is not None:
                    raise  # a mean over some of a benchmark's images is nobody's score
                failures.append((image.name, str(error)))

    def collect() -> None:
        while finishing:
            image, sr, future = finishing.popleft()
            mine[image.name], missing = future.result()
            failures.extend((image.name, sentence) for sentence in missing)
            on_image(image, sr)

    with world.agree(), _worker() as (worker, ended):
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
    return BenchmarkScores(dict(sorted(images.items())), tuple(sentence for _, sentence in failures), tuple(notes))


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
    """Write an SR image and score it; return its scores, and a sentence about each that it has not."""
    if output is not None:
        write_image(output / f"{image.name}.png", sr, cancelled=cancelled)
    wanted = {name: metric for name, metric in metrics.items() if image.hr is not None or not metric.needs_ground_truth}
    hr = read_rgb(image.hr) if any(metric.needs_ground_truth for metric in wanted.values()) else None
    scores, missing = {}, []
    for name, metric in wanted.items():
        try:
            score = unless_out_of_memory(partial(_score, metric, sr, hr, device))
            reason = f"out of memory on {device}"
        except UserError as error:  # it is too small, for instance
            score, reason = None, error
        if score is None:
            missing.append(f"{image.hr or image.lr} has no {name}: {reason}")
        else:
            scores[name] = score
    return scores, missing


def _score(metric: Metric, sr: np.ndarray, hr: np.ndarray | None, device: torch.device) -> float:
    """Of what SR and HR have in common, from the top left, where the sides of HR are no multiples of the scale."""
    if hr is None:
        return metric.compute(to_tensor(sr).to(device), None)
    height, width = (min(a, b) for a, b in zip(sr.shape[:2], hr.shape[:2], strict=True))
    return metric.compute(*(to_tensor(image[:height, :width]).to(device) for image in (sr, hr)))
