"""Upscale and score a benchmark, with its images distributed over the processes.

Used by `test.py` and by validation during training, so that both compute the same scores.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
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
from sed_sr.utils.evaluation.results import BenchmarkScores
from sed_sr.utils.evaluation.upscaler import OutOfMemory, Upscale
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import unless_out_of_memory


def evaluate(
    upscale: Upscale,
    benchmark: Benchmark,
    *,
    scale: int,
    metrics: dict[str, Metric],
    device: torch.device,
    world: World,
    output: Path | None = None,
    on_image: Callable[[BenchmarkImage, np.ndarray], object] = lambda image, sr: None,
    stop: Callable[[], bool] = lambda: False,
    batch_size: int = 1,
) -> BenchmarkScores | None:
    """Upscale every image of a benchmark, and score it by all metrics if it has ground truth.

    The protocol is the paper's (see `metrics`): SR is rounded to 8 bits before scoring. TF32 is off, whatever the
    process has set. Every rank processes its share of the images; the scores are gathered, and every rank returns all
    of them. While images are upscaled, one thread reads the next image and another writes and scores the previous ones.

    A failure does not end the evaluation, so that a validation never ends hours of training. An image that cannot be
    read or does not fit into memory is left out of `images`. A score that cannot be computed, because the ground
    truth cannot be read, the image is too small, memory does not suffice or the result is NaN, is left out of the
    image's scores. `failures` has a sentence for each.

    Args:
        scale: of `upscale`.
        output: folder for the SR images, one PNG each.
        on_image: called with each image and its SR on the rank that made it, in order, once they are written.
        stop: called before each batch; if it returns True, the evaluation is given up.
        batch_size: the number of consecutive images of the same size that are upscaled together.

    Returns:
        The scores; None on every rank if `stop` returned True on one of them.
    """
    scores_here, failures, notes, stopped = {}, [], [], False

    def readable_images() -> Iterator[tuple[BenchmarkImage, np.ndarray]]:
        for image, reading in _read_ahead(benchmark.images[world.rank :: world.size]):
            try:
                yield image, reading.result()
            except UserError as error:
                failures.append((image.name, str(error)))

    def collect() -> None:
        while pending:
            image, sr, future = pending.popleft()
            scores_here[image.name], missing = future.result()
            failures.extend((image.name, sentence) for sentence in missing)
            on_image(image, sr)

    with world.raise_together(), without_tf32(), _worker_thread() as (worker, cancelled):
        write_and_score = partial(
            _write_and_score, scale=scale, metrics=metrics, device=device, output=output, cancelled=cancelled.is_set
        )
        pending = deque()  # the previous batch
        for batch in _batches(readable_images(), batch_size):
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
                pending.append((image, sr, worker.submit(write_and_score, image, sr)))
        collect()
    if world.any(stopped):
        return None
    shares = world.gather((scores_here, failures, notes))
    images = {name: scores for share, _, _ in shares for name, scores in share.items()}
    failures = sorted((failure for _, share, _ in shares for failure in share), key=itemgetter(0))
    notes = dict.fromkeys(text for _, _, texts in shares for text in texts)  # the ranks have the same notes
    return BenchmarkScores(
        dict(sorted(images.items())),
        failures=tuple(sentence for _, sentence in failures),
        notes=tuple(notes),
        not_upscaled=len(benchmark.images) - len(images),
    )


def check_best_by(metric: Metric, benchmark: Benchmark, *, scale: int) -> str:
    """Check that the metric of `validation.best_by` can score every image of its benchmark.

    Reads the headers of the images only, and computes the metric on noise of the size of the smallest image.

    Args:
        benchmark: the first of `validation.benchmarks`.
        scale: of the generator.

    Returns:
        A description of what was checked.

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
                "benchmark first, or choose a no-reference metric or validation.best_by: null"
            )
        sizes[image] = (height, width) if image.hr is None else _common_size((height, width), image_size(image.hr))
    smallest = min(sizes, key=lambda image: sorted(sizes[image]))
    height, width = sizes[smallest]
    noise = torch.Generator().manual_seed(0)
    sr, hr = torch.randint(256, (2, 3, height, width), generator=noise, dtype=torch.uint8)
    try:
        unless_out_of_memory(partial(metric.score, sr, hr if metric.needs_ground_truth else None, scale=scale))
    except UserError as error:
        raise UserError(
            f"validation.best_by is {metric.name}, which cannot score image {smallest.name} of benchmark "
            f"{benchmark.name} ({smallest.hr or smallest.lr}, {width}x{height} px): {error}"
        ) from error
    return f"{metric.name} on {benchmark.name}, whose smallest image has {width}x{height} px"


@contextmanager
def _worker_thread() -> Iterator[tuple[ThreadPoolExecutor, Event]]:
    """A thread, and an event that tells its current task to stop.

    If the block ends early, the event is set and tasks that have not started are cancelled.
    """
    thread, cancelled = ThreadPoolExecutor(max_workers=1), Event()
    try:
        yield thread, cancelled
    finally:
        cancelled.set()
        thread.shutdown(cancel_futures=True)


def _read_ahead(images: Sequence[BenchmarkImage]) -> Iterator[tuple[BenchmarkImage, Future[np.ndarray]]]:
    """Read the LR images. While the caller processes one, the next one is read, and no further ones."""
    with _worker_thread() as (worker, _):
        started = ((image, worker.submit(read_rgb, image.lr)) for image in images)
        current = next(started, None)
        while current is not None:
            following = next(started, None)
            yield current
            current = following


def _batches(
    images: Iterable[tuple[BenchmarkImage, np.ndarray]], size: int
) -> Iterator[list[tuple[BenchmarkImage, np.ndarray]]]:
    """Batches of at most `size` consecutive images of the same size."""
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


def _write_and_score(
    image: BenchmarkImage,
    sr: np.ndarray,
    *,
    scale: int,
    metrics: dict[str, Metric],
    device: torch.device,
    output: Path | None,
    cancelled: Callable[[], bool],
) -> tuple[dict[str, float], list[str]]:
    """Write an SR image and score it; returns its scores, and a sentence for each score that failed."""
    if output is not None:
        write_image(output / f"{image.name}.png", sr, cancelled=cancelled)
    wanted = {name: metric for name, metric in metrics.items() if image.hr is not None or not metric.needs_ground_truth}
    hr, scores, missing = None, {}, []
    need_hr = [name for name, metric in wanted.items() if metric.needs_ground_truth]
    if image.hr is not None and need_hr:
        try:
            hr = read_rgb(image.hr)
        except UserError as error:
            missing.append(f"{image.hr} has no {', '.join(need_hr)}: {error}")
            wanted = {name: metric for name, metric in wanted.items() if name not in need_hr}
    for name, metric in wanted.items():
        try:
            scores[name] = _score(metric, sr, hr, device, scale=scale)
        except UserError as error:
            missing.append(f"{image.hr or image.lr} has no {name}: {error}")
    return scores, missing


def _score(metric: Metric, sr: np.ndarray, hr: np.ndarray | None, device: torch.device, *, scale: int) -> float:
    """The score of the area that SR and HR share, from the top left: HR may have sides that the scale does not divide.

    Raises UserError if the metric cannot score the image, for instance because it is too small.
    """

    def compute() -> float:
        if hr is None:
            return metric.score(to_tensor(sr).to(device), None, scale=scale)
        height, width = _common_size(sr.shape[:2], hr.shape[:2])
        return metric.score(*(to_tensor(image[:height, :width]).to(device) for image in (sr, hr)), scale=scale)

    score = unless_out_of_memory(compute)
    if score is None:
        raise OutOfMemory(f"out of memory on {device}")
    if math.isnan(score):
        raise UserError("the result is NaN")
    return score


def _common_size(sr: tuple[int, int], hr: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) of the area that two images share."""
    return min(sr[0], hr[0]), min(sr[1], hr[1])
