"""Weak scaling of a training step: several processes against one, each with a batch of its own.

    torchrun --standalone --nproc_per_node=2 benchmarks/scaling.py --opt options/train_rrdb_P+SeD.yml --precision bf16
    python benchmarks/scaling.py --opt options/train_rrdb_P+SeD.yml --batch 8 --step-seconds 0.05 --predict

The first prints one line of JSON. Weights are random and images are noise. Three ways take turns in the same processes:
one process `alone` while the others sleep; all of them `apart`, at the same time, but without a word to each other; all
of them `together`, as in training. What `apart` loses is the machine's (memory bandwidth and caches that cores share),
so alone / apart bounds what communication can leave. On a CPU every process keeps to one core; torchrun gives it one
thread.

The second prints what is to be expected of GPUs, as a table in Markdown: the time of a step on one GPU is
`--step-seconds`, or follows from its operations and an assumed rate. All gradients are summed at once between the
backward passes and the update, so that their way is added to the step.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from benchmarks.operations import operations
from benchmarks.random_step import random_recipe, random_step
from sed_sr.data.batches import Batch
from sed_sr.models.build import records_graphs
from sed_sr.models.cuda_graph import CudaRecorder
from sed_sr.models.precision import AUTOCAST_DTYPE, resolved
from sed_sr.models.train_step import TrainStep
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override
from sed_sr.options.schema import Options
from sed_sr.utils.runtime.distributed import World, joined_world

WARM_UP_ROUNDS = 2  # on a GPU, the step is recorded within them


@dataclass(frozen=True)
class Link:
    """What joins GPUs: for each of them, or for each machine where a ring of them leaves it."""

    name: str
    bytes_per_s: float  # in each direction
    hop_s: float  # from one GPU to the next, however little is sent

    def all_reduce_s(self, size_bytes: float, gpus: int) -> float:
        """Time of a sum over `gpus`: a ring's share of the bandwidth, a tree's latency (NCCL has both)."""
        return 2 * (gpus - 1) / gpus * size_bytes / self.bytes_per_s + 2 * math.ceil(math.log2(gpus)) * self.hop_s


# 80 % of what the links are named for: 450 GB/s in each direction (H100), 100 Gb/s
LINKS = (Link("NVLink", 0.8 * 450e9, 5e-6), Link("100 Gb/s Ethernet", 0.8 * 12.5e9, 30e-6))
GPUS = (4, 8, 64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opt", required=True, metavar="FILE", help="recipe whose step is timed")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one option")
    parser.add_argument("--batch", type=int, default=1, help="images in a batch of each process (1)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way, one step each (3)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", *AUTOCAST_DTYPE), default="auto")
    parser.add_argument("--predict", action="store_true", help="compute what GPUs will do instead")
    parser.add_argument("--step-seconds", type=float, help="of one GPU (predicted from the two below)")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="matrix rate of a GPU (989: H100, bf16)")
    parser.add_argument("--share", type=float, default=0.3, help="of that rate which training reaches (0.3)")
    arguments = parser.parse_args()
    device = World(local_rank=int(os.environ.get("LOCAL_RANK", 0))).device(arguments.device)
    options = random_recipe(
        arguments.opt,
        *map(Override.parse, arguments.set),
        device=device.type,
        train__precision=arguments.precision,
        dataloader__batch_size=1 if arguments.predict else arguments.batch,
    )
    if arguments.predict:
        rate = arguments.peak_tflops * 1e12 * arguments.share
        print(prediction(options, batch=arguments.batch, rate=rate, step_s=arguments.step_seconds))
        return 0
    if device.type == "cpu":
        keep_to_one_core()
    with joined_world() as world:
        if world.size == 1:
            raise UserError("scaling takes several processes: torchrun --standalone --nproc_per_node=2 " + sys.argv[0])
        report = measure(options, rounds=arguments.rounds, device=device, world=world)
        if world.main:
            print(json.dumps(report))
    return 0


def keep_to_one_core() -> None:
    """Before threads start, which inherit it: those of gloo work on the core of their process."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("LOCAL_RANK", 0)) % len(cores)]})


def measure(options: Options, *, rounds: int, device: torch.device, world: World) -> dict[str, object]:
    """Seconds of a step each way, and what follows from them. All processes call it, and the main one reports."""
    step, batch = random_step(options, device)
    gradients = torch.zeros(sent_bytes(step, batch) // 4, device=device)
    if records_graphs(options, device):
        step.record(CudaRecorder, warn=partial(print, file=sys.stderr))
    ways = {"alone": itself, "apart": itself, "together": world.all_reduce}
    seconds = {way: [] for way in (*ways, "communication")}

    def turn(way: str, once: Callable[[], object]) -> None:
        world.any(False)  # all processes are here
        here_s = duration_s(once, device) if way != "alone" or world.main else 0.0
        seconds[way].append(max(world.gather(here_s)))

    for _ in range(WARM_UP_ROUNDS + rounds):
        for way, add_up in ways.items():
            step.distribute(all_reduce=add_up, processes=world.size)
            turn(way, lambda: step(batch))
        turn("communication", lambda: world.all_reduce(gradients))
    alone, apart, together, communication = (statistics.median(each[WARM_UP_ROUNDS:]) for each in seconds.values())
    return {
        "recipe": options.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}",
        "processes": world.size,
        "precision": resolved(options.train.precision, device),
        "batch": options.dataloader.batch_size,
        "seconds_alone": round(alone, 4),
        "seconds_apart": round(apart, 4),
        "seconds_together": round(together, 4),
        "efficiency": round(alone / together, 3),
        "bound": round(alone / apart, 3),
        "efficiency_of_bound": round(apart / together, 3),
        "gradient_mb": round(gradients.nbytes / 1e6, 1),
        "seconds_of_communication": round(communication, 4),
    }


def itself(values: Tensor) -> Tensor:
    """The sum over this process alone."""
    return values


def sent_bytes(step: TrainStep, batch: Batch) -> int:
    """What a step sums over the processes."""
    sizes = []

    def add_up(values: Tensor) -> Tensor:
        sizes.append(values.nbytes)
        return values

    step.distribute(all_reduce=add_up, processes=1)
    step(batch)
    return sum(sizes)


def duration_s(once: Callable[[], object], device: torch.device) -> float:
    started_s = time.perf_counter()
    once()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_s


def prediction(options: Options, *, batch: int, rate: float, step_s: float | None) -> str:
    """Table of the efficiency to be expected.

    Args:
        options: of a batch of one, whose operations are counted.
        batch: images of each GPU.
        rate: floating-point operations that a GPU does in a second.
        step_s: of one GPU; None: all operations at that rate.
    """
    step, one = random_step(options, torch.device("cpu"))
    size_bytes = sent_bytes(step, one)
    flop = operations(lambda: step(one))
    step_s = batch * flop / rate if step_s is None else step_s
    lines = [
        f"{options.name}: {flop / 1e12:.3g} TFLOP per image, batch {batch}, {step_s * 1e3:.3g} ms per step on one GPU; "
        f"float32 gradients: {size_bytes / 1e6:.1f} MB",
        "",
        "| link | GPUs | communication (ms) | efficiency |",
        "|---|--:|--:|--:|",
    ]
    for link in LINKS:
        for gpus in GPUS:
            sent_s = link.all_reduce_s(size_bytes, gpus)
            lines.append(f"| {link.name} | {gpus} | {sent_s * 1e3:.2f} | {step_s / (step_s + sent_s):.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
