"""Time one training step, and print one line of JSON.

    python benchmarks/train_step.py --opt options/train_rrdb_P+SeD.yml --batch 1 --steps 3 --device cpu --precision bf16

The networks have random weights and the images are noise: neither changes the time. The step is timed without what
makes its pairs, which has a figure of its own: LR that is made from HR takes time. The unit of comparison is a plain
float32 forward and backward pass of RRDB(23 blocks, 64 features, growth 32) on as many LR images of that size, in the
same process; it makes figures of different machines comparable.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from models.build import RANDOM, build_generator, build_train_step, build_training_pairs
from models.rrdb import RRDBNet
from models.train_step import Batch
from options.schema import Override, load_options
from utils.distributed import World
from utils.entry import run
from utils.memory import peak_bytes

WARM_UP_STEPS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opt", required=True, metavar="FILE", help="recipe whose step is timed")
    parser.add_argument("--batch", type=int, default=1, help="images in a batch (1)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps after two that are not (3)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    arguments = parser.parse_args()
    fixed = {
        "semantic_extractor.weights": RANDOM,
        "device": arguments.device,
        "train.precision": arguments.precision,
        "dataloader.batch_size": arguments.batch,
    }
    options = load_options(arguments.opt)
    if options.losses.perceptual is not None:
        fixed["losses.perceptual.vgg_weights"] = RANDOM
    options = load_options(arguments.opt, [Override(key, value, f"{key}={value}") for key, value in fixed.items()])
    device = World().device(options.device)

    generator = build_generator(options).to(device, memory_format=torch.channels_last)
    step = build_train_step(options, generator=generator, device=device)
    side = options.dataset.lr_patch_px
    hr_px = options.degradation.hr_px if options.degradation is not None else side * generator.scale
    loaded = {name: noise(arguments.batch, px) for name, px in (("lr", side), ("hr", hr_px))}
    pairs, seeds = build_training_pairs(options, scale=generator.scale), itertools.count()

    def make_pairs() -> Batch:
        return pairs(loaded, seed=next(seeds), device=device)

    # The mean, because degradations differ in what they cost.
    pairs_s = statistics.mean(durations_s(make_pairs, 10 * arguments.steps, device))
    batch = make_pairs()
    step_s = statistics.median(durations_s(lambda: step(batch), arguments.steps, device))
    most_bytes = peak_bytes(device)
    with FlopCounterMode(display=False) as counter:
        step(batch)
    unit_s = statistics.median(durations_s(plain_rrdb(batch.lr, batch.hr), arguments.steps, device))
    report = {
        "recipe": options.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}",
        "precision": arguments.precision,
        "batch": arguments.batch,
        "lr_patch_px": side,
        "seconds_per_step": round(step_s, 4),
        "seconds_to_make_pairs": round(pairs_s, 4),
        "images_per_s": round(arguments.batch / step_s, 4),
        "peak_memory_gib": round(most_bytes / 2**30, 3),
        "tflop_per_step": round(counter.get_total_flops() / 1e12, 4),
        "plain_rrdb_seconds": round(unit_s, 4),
        "ratio_to_plain_rrdb": round(step_s / unit_s, 3),
    }
    print(json.dumps(report))
    return 0


def noise(images: int, side_px: int) -> torch.Tensor:
    return torch.randint(256, (images, 3, side_px, side_px), dtype=torch.uint8)


def plain_rrdb(lr: torch.Tensor, hr: torch.Tensor) -> Callable[[], None]:
    """Forward and backward pass of the published RRDB, as everybody would write it."""
    network = RRDBNet(features=64, blocks=23, growth=32).to(lr.device)
    lr, hr = lr.contiguous(), hr.contiguous()

    def once() -> None:
        network.zero_grad(set_to_none=True)
        F.l1_loss(network(lr), hr).backward()

    return once


def durations_s(once: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    """Durations of a call, after the first ones, in which caches fill and kernels are chosen."""
    durations = []
    for _ in range(WARM_UP_STEPS + steps):
        started_s = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - started_s)
    return durations[WARM_UP_STEPS:]


if __name__ == "__main__":
    run(main)
