"""How long a run will train and how much disk space it will need, without its data and weights."""

import gc
import statistics
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.random_step import random_recipe, random_step
from benchmarks.train_step import durations_s
from sed_sr.data.benchmarks import Benchmark, find_benchmark
from sed_sr.models.build import records_graphs
from sed_sr.models.cuda_graph import CudaRecorder
from sed_sr.options.errors import UserError
from sed_sr.options.recipe import Override
from sed_sr.options.schema import Options
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.train_run import synchronize
from sed_sr.utils.training.batch_size import Batches
from sed_sr.utils.training.checklist import needed_space
from sed_sr.utils.training.run_folder import RunFolder

TIMED_STEPS = 3


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        steps: that are left, from the newest training state on.
        step_s: seconds of a step, without loading its images and without waiting for other processes.
        disk_bytes: that its folder will grow by, validation images only as far as their benchmarks are there.
    """

    steps: int
    step_s: float
    disk_bytes: int

    @property
    def hours(self) -> float:
        return self.steps * self.step_s / 3600


def forecast(recipe: Path, overrides: Sequence[Override], batches: Batches, *, device: torch.device) -> Forecast:
    """Take a few steps with random weights and noise, which change neither their time nor the size of what is saved.

    Args:
        batches: of a step of each process. On a CPU, a step of a single pair is measured and its time multiplied.
    """
    gc.collect()  # recorded graphs of the previous forecast
    torch.cuda.empty_cache()
    on_gpu = device.type == "cuda"
    pairs, per_step = (batches.size, batches.per_step) if on_gpu else (1, 1)
    measured = {"dataloader__batch_size": pairs, "train__accumulate_batches": per_step, "train__total_batch_size": None}
    options = random_recipe(str(recipe), *overrides, **measured)
    step, batch = random_step(options, device)
    synchronize(step, World())
    if records_graphs(options, device):
        step.record(CudaRecorder, warn=partial(print, file=sys.stderr))
    step_s = statistics.median(durations_s(lambda: step(*[batch] * per_step), TIMED_STEPS if on_gpu else 1, device))
    folder = RunFolder(options.paths.out_root / options.name)
    newest = next((int(path.stem.removeprefix("state_")) for path in folder.saved_states()), 0)
    steps = max(0, options.train.total_steps - newest)
    validated = present_benchmarks(options, options.validation.benchmarks)
    disk_bytes, _ = needed_space(options, folder, step, validated, steps_left=steps)
    return Forecast(steps, step_s * (batches.size * batches.per_step) / (pairs * per_step), disk_bytes)


def present_benchmarks(options: Options, names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks that can be read."""
    found = []
    for name in names:
        with suppress(UserError):
            found.append(find_benchmark(options.paths.data_test_root, name, scale=options.scale))
    return found
