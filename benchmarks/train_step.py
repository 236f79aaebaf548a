"""Time one training step, and print one line of JSON.

    python benchmarks/train_step.py --opt options/train_rrdb_P+SeD.yml --batch 1 --steps 3 --device cpu --precision bf16

The networks have random weights and the images are noise: neither changes the time. The step is timed without what
makes its pairs, which has a figure of its own: LR that is made from HR takes time. The unit of comparison is a plain
float32 forward and backward pass of RRDB(23 blocks, 64 features, growth 32) on as many LR images of that size, in the
same process; it makes figures of different machines comparable. What the machine could do is the rate of a product of
large matrices in the same precision: the step's share of it says how much is left to gain. On a GPU the step is
recorded as CUDA graphs, as in training.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from benchmarks.operations import operations
from benchmarks.random_step import random_recipe, random_train_step
from sed_sr.data.batches import Batch
from sed_sr.data.build import build_training_pairs
from sed_sr.models.build import records_graphs
from sed_sr.models.cuda_graph import WARM_UP_CALLS, CudaRecorder
from sed_sr.models.precision import AUTOCAST_DTYPE, resolved
from sed_sr.models.rrdb import RRDBNet
from sed_sr.options.cli import run
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import peak_bytes

WARM_UP_STEPS = 2  # on a CPU; on a GPU until a step is recorded
SIDE = 4096  # of matrices


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opt", required=True, metavar="FILE", help="recipe whose step is timed")
    parser.add_argument("--batch", type=int, default=1, help="images in a batch (1)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps after some that are not (3)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", *AUTOCAST_DTYPE), default="auto")
    parser.add_argument("--compile", action="store_true", help="the generator's blocks and the discriminator")
    parser.add_argument("--eager", action="store_true", help="launch kernels one by one, without CUDA graphs")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="of the generator's blocks")
    arguments = parser.parse_args()
    options = random_recipe(
        arguments.opt,
        device=arguments.device,
        train__precision=arguments.precision,
        train__compile=arguments.compile,
        train__cuda_graph=False if arguments.eager else "auto",
        train__gradient_checkpointing=arguments.gradient_checkpointing,
        dataloader__batch_size=arguments.batch,
    )
    device = World().device(options.device)

    step = random_train_step(options, device)
    generator, side = step.generator, options.dataset.hr_patch_px // options.scale
    hr_px = options.degradation.hr_px if options.degradation is not None else options.dataset.hr_patch_px
    loaded = {name: noise(arguments.batch, px) for name, px in (("lr", side), ("hr", hr_px))}
    pairs, seeds = build_training_pairs(options, scale=generator.scale), itertools.count()

    def make_pairs() -> Batch:
        return pairs(loaded, seed=next(seeds), device=device)

    # The mean, because degradations differ in what they cost.
    pairs_s = statistics.mean(durations_s(make_pairs, 10 * arguments.steps, device))
    batch = make_pairs()
    with torch.compiler.set_stance("force_eager"):  # before a recording
        flop = operations(lambda: step(batch))
    if records_graphs(options, device):
        step.record(CudaRecorder, warn=partial(print, file=sys.stderr))
    step_s = statistics.median(durations_s(lambda: step(batch), arguments.steps, device))
    most_bytes = peak_bytes(device)
    precision = resolved(arguments.precision, device)
    product_s = statistics.median(durations_s(product(precision, device), 5, device))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # the unit is plain float32
    unit_s = statistics.median(durations_s(plain_rrdb(batch.lr, batch.hr), arguments.steps, device))
    report = {
        "recipe": options.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}",
        "precision": precision,
        "compile": arguments.compile,
        "cuda_graph": records_graphs(options, device),
        "gradient_checkpointing": arguments.gradient_checkpointing,
        "batch": arguments.batch,
        "lr_patch_px": side,
        "seconds_per_step": round(step_s, 4),
        "seconds_to_make_pairs": round(pairs_s, 4),
        "images_per_s": round(arguments.batch / step_s, 4),
        "peak_memory_gib": round(most_bytes / 2**30, 3),
        "tflop_per_step": round(flop / 1e12, 4),
        "share_of_matrix_rate": round(flop / step_s / (2 * SIDE**3 / product_s), 3),
        "plain_rrdb_seconds": round(unit_s, 4),
        "ratio_to_plain_rrdb": round(step_s / unit_s, 3),
    }
    print(json.dumps(report))
    return 0


def noise(images: int, side_px: int) -> torch.Tensor:
    return torch.randint(256, (images, 3, side_px, side_px), dtype=torch.uint8)


def product(precision: str, device: torch.device) -> Callable[[], torch.Tensor]:
    """Of two large matrices."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    left, right = (torch.randn(SIDE, SIDE, device=device, dtype=AUTOCAST_DTYPE[precision]) for _ in range(2))
    return lambda: left @ right


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
    warm_up_steps = WARM_UP_CALLS + 1 if device.type == "cuda" else WARM_UP_STEPS
    durations = []
    for _ in range(warm_up_steps + steps):
        started_s = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(time.perf_counter() - started_s)
    return durations[warm_up_steps:]


if __name__ == "__main__":
    run(main)
