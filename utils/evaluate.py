"""Upscale a benchmark and score it, its images shared out over the processes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from data.benchmarks import Benchmark, BenchmarkImage
from data.images import read_rgb, to_array, to_float, to_tensor, to_uint8, write_image
from data.imresize import imresize
from utils.distributed import World
from utils.errors import UserError
from utils.memory import is_out_of_memory
from utils.metrics import LPIPS, psnr_y, ssim_y
from utils.tiles import halved, upscale_in_tiles
from utils.weights import WeightsMissing, locate

T = TypeVar("T")
Note = Callable[[str], None]  # told what the user should know of how it went
Upscale = Callable[[np.ndarray, Note], np.ndarray]  # (H, W, 3) uint8 RGB -> (4H, 4W, 3) uint8 RGB
Metric = Callable[[Tensor, Tensor], float]  # SR and HR, (3, H, W) uint8 -> score

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
SMALLEST_TILE_PX = 64


class OutOfMemory(UserError):
    """An image cannot be upscaled, or not be scored, in the memory that there is."""


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


def bicubic(scale: int) -> Upscale:
    """MATLAB's bicubic interpolation, the baseline of every table."""
    return lambda lr, note: imresize(lr, scale=scale)


def by_network(generator: nn.Module, device: torch.device) -> Upscale:
    """Upscaling by a generator that is on `device`, in evaluation mode and float32.

    Where memory does not hold an image as a whole, it is upscaled in tiles, and so are the images after it.

    Raises (when called): OutOfMemory where not even the smallest tiles fit.
    """
    remembered_px = None  # tiles that memory held; None: whole images, so far

    @torch.inference_mode()
    def attempt(lr: np.ndarray, tile_px: int | None) -> np.ndarray:
        image = to_float(to_tensor(lr)[None].to(device))
        if tile_px is None:
            sr = generator(image)
        else:
            sr = upscale_in_tiles(generator, image, scale=generator.scale, tile_px=tile_px)
        return to_array(to_uint8(sr)[0])

    def upscale(lr: np.ndarray, note: Note) -> np.ndarray:
        nonlocal remembered_px
        generator.eval()
        for tile_px in _tile_sizes(remembered_px, longer_side_px=max(lr.shape[:2])):
            sr = _unless_out_of_memory(partial(attempt, lr, tile_px))
            if sr is not None:
                if tile_px != remembered_px:
                    note(f"out of memory on {device}: upscaling goes on in tiles of {tile_px} px")
                    remembered_px = tile_px
                return sr
        raise OutOfMemory(f"out of memory on {device}, even in tiles of {SMALLEST_TILE_PX} px")

    return upscale


def _tile_sizes(first_px: int | None, *, longer_side_px: int) -> Iterator[int | None]:
    """The sizes to try on an image, in LR pixels: `first_px` (None: the whole image), then half by half."""
    yield first_px
    tile_px = min(first_px or longer_side_px, longer_side_px)
    while tile_px > SMALLEST_TILE_PX:
        tile_px = max(halved(tile_px), SMALLEST_TILE_PX)
        yield tile_px


def _unless_out_of_memory(compute: Callable[[], T]) -> T | None:
    """What `compute` returns, or None where memory did not suffice."""
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Not in the handler: until it ends, the error's traceback holds on to all that was computed before.
    torch.cuda.empty_cache()
    return None


def metric_weights(names: tuple[str, ...]) -> list[str]:
    """The pretrained files that these metrics need."""
    return [LPIPS_BACKBONE] if "lpips" in names else []


def build_metrics(names: tuple[str, ...] | None, *, pretrained_root: Path, device: torch.device) -> dict[str, Metric]:
    """The metrics of these names; for None, those that can be had: lpips only if its backbone can be found.

    Raises UserError where lpips was asked for by name and its backbone cannot be had.
    """
    wanted = names if names is not None else ("psnr", "ssim", "lpips")
    metrics: dict[str, Metric] = {"psnr": psnr_y, "ssim": ssim_y}
    if "lpips" in wanted:
        try:
            backbone = locate(LPIPS_BACKBONE, pretrained_root=pretrained_root)
        except WeightsMissing:
            if names is not None:
                raise
        else:
            metrics["lpips"] = LPIPS(backbone, device=device)
    return {name: metrics[name] for name in wanted if name in metrics}


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
) -> BenchmarkScores | None:
    """Upscale every image of a benchmark and score those with ground truth.

    The protocol is the paper's (see utils.metrics): SR rounded to 8 bits before it is scored. Every rank takes its
    share of the images; the scores are gathered, so that every rank returns all of them.

    An LR image that cannot be read ends the evaluation of a benchmark; in a folder without ground truth it is one of
    the failures, and the others go on. An image, or a metric of it, that memory does not suffice for is a failure too,
    and everything else goes on: hours of training do not end in a validation.

    Args:
        output: folder for the SR images, one PNG each.
        on_image: called with each image and its SR on the rank that made it.
        stop: asked before each image whether to give up.

    Returns:
        The scores; None on every rank if one of them was told to stop before its last image.
    """
    mine, failures, notes = {}, [], []
    stopped = False
    with world.agree():
        for image in benchmark.images[world.rank :: world.size]:
            stopped = stop()
            if stopped:
                break
            try:
                sr = upscale(read_rgb(image.lr), notes.append)
            except OutOfMemory as error:
                failures.append(OutOfMemory(f"{image.lr} could not be upscaled: {error}"))
                continue
            except UserError as error:
                if image.hr is not None:
                    raise  # a mean over some of a benchmark's images is nobody's score
                failures.append(error)
                continue
            if output is not None:
                write_image(output / f"{image.name}.png", sr)
            scores = _score(sr, read_rgb(image.hr), metrics, device) if image.hr is not None else {}
            mine[f"{image.name}.png"] = {name: score for name, score in scores.items() if score is not None}
            missing = [name for name, score in scores.items() if score is None]
            failures += [OutOfMemory(f"{image.hr} has no {name}: out of memory on {device}") for name in missing]
            on_image(image, sr)
    if world.any(stopped):
        return None
    shares = world.gather((mine, [str(failure) for failure in failures], notes))
    images = {name: scores for share, _, _ in shares for name, scores in share.items()}
    failures = tuple(text for _, texts, _ in shares for text in texts)
    notes = tuple(dict.fromkeys(text for _, _, texts in shares for text in texts))  # ranks note the same
    return BenchmarkScores(dict(sorted(images.items())), failures, notes)


def _score(sr: np.ndarray, hr: np.ndarray, metrics: dict[str, Metric], device: torch.device) -> dict[str, float | None]:
    """The scores by metric; None where memory did not suffice for one."""
    height, width = (min(a, b) for a, b in zip(sr.shape[:2], hr.shape[:2], strict=True))

    def score(metric: Metric) -> float:
        return metric(*(to_tensor(np.ascontiguousarray(image[:height, :width])).to(device) for image in (sr, hr)))

    return {name: _unless_out_of_memory(partial(score, metric)) for name, metric in metrics.items()}
