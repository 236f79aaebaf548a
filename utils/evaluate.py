"""Upscale a benchmark and score it, its images shared out over the processes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.benchmarks import Benchmark, BenchmarkImage
from data.images import read_rgb, to_array, to_float, to_tensor, to_uint8, write_image
from data.imresize import imresize
from utils.distributed import World
from utils.errors import UserError
from utils.metrics import LPIPS, psnr_y, ssim_y
from utils.weights import WeightsMissing, locate

Upscale = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 RGB -> (4H, 4W, 3) uint8 RGB
Metric = Callable[[Tensor, Tensor], float]  # SR and HR, (3, H, W) uint8 -> score

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"


@dataclass(frozen=True)
class BenchmarkScores:
    """Scores of one benchmark: of each image by name, and their means."""

    images: dict[str, dict[str, float]]  # empty scores where there is no ground truth
    failures: tuple[str, ...] = ()  # what was wrong with images that could not be upscaled

    @property
    def mean(self) -> dict[str, float]:
        """Of every metric, over the images."""
        rows = list(self.images.values())
        return {metric: math.fsum(row[metric] for row in rows) / len(rows) for metric in rows[0]} if rows else {}


def bicubic(scale: int) -> Upscale:
    """MATLAB's bicubic interpolation, the baseline of every table."""
    return lambda lr: imresize(lr, scale=scale)


def by_network(generator: nn.Module, device: torch.device) -> Upscale:
    """Upscaling by a generator that is on `device`, in evaluation mode and float32."""

    @torch.inference_mode()
    def upscale(lr: np.ndarray) -> np.ndarray:
        generator.eval()
        sr = generator(to_float(to_tensor(lr)[None].to(device)))
        return to_array(to_uint8(sr)[0].cpu())

    return upscale


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
) -> BenchmarkScores:
    """Upscale every image of a benchmark and score those with ground truth.

    The protocol is the paper's (see utils.metrics): SR rounded to 8 bits before it is scored. Every rank takes its
    share of the images; the scores are gathered, so that every rank returns all of them.

    An LR image that cannot be read ends the evaluation of a benchmark; in a folder without ground truth it is one of
    the failures, and the others go on.

    Args:
        output: folder for the SR images, one PNG each.
        on_image: called with each image and its SR on the rank that made it.
    """
    mine, failures = {}, []
    with world.agree():
        for image in benchmark.images[world.rank :: world.size]:
            try:
                lr = read_rgb(image.lr)
            except UserError as error:
                if image.hr is not None:
                    raise  # a mean over some of a benchmark's images is nobody's score
                failures.append(str(error))
                continue
            sr = upscale(lr)
            if output is not None:
                write_image(output / f"{image.name}.png", sr)
            mine[f"{image.name}.png"] = _score(sr, read_rgb(image.hr), metrics, device) if image.hr is not None else {}
            on_image(image, sr)
    shares = world.gather((mine, failures))
    everyone = {name: scores for images, _ in shares for name, scores in images.items()}
    return BenchmarkScores(dict(sorted(everyone.items())), tuple(text for _, texts in shares for text in texts))


def _score(sr: np.ndarray, hr: np.ndarray, metrics: dict[str, Metric], device: torch.device) -> dict[str, float]:
    height, width = (min(a, b) for a, b in zip(sr.shape[:2], hr.shape[:2], strict=True))
    pair = [to_tensor(np.ascontiguousarray(image[:height, :width])).to(device) for image in (sr, hr)]
    return {name: metric(*pair) for name, metric in metrics.items()}
