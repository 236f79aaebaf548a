"""What a GPU makes of this project: training steps in every way to compute them, upscaling, a whole run of train.py.

    python benchmarks/gpu.py                                                    # or: make benchmark-gpu
    python benchmarks/gpu.py --device cpu --quick --output quick.jsonl          # all of it, tiny, on a CPU

Prints a report in Markdown, which says at its end which goals were met. What was measured is kept in a file of JSON
lines. The same command goes on where it was; what does not fit into its time is left for the next call. What fails is a
row that says so, and is tried again once its line is deleted.

Steps are compared with the released-style step (benchmarks/released_step.py) of the same recipe and batch. Networks
have random weights and images are noise. The share of the matrix rate is that of a large product of bfloat16 matrices,
measured here as well.
"""

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from benchmarks.gpu_measurements import (
    counted,
    matrix_rate,
    name_of,
    resumed_run,
    synchronize,
    timed_step,
    training_run,
    upscaling,
)
from benchmarks.gpu_plan import (
    COMPILED,
    DEFAULT,
    GRAPHS,
    RELEASED,
    UPSCALERS,
    Plan,
    Row,
    combinations,
    full_plan,
    key,
    quick_plan,
)
from benchmarks.gpu_report import report
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.distributed import World

LIMIT_S = 150  # of one measurement
# What measurements take, at most, roughly: none is begun that would not fit.
RATE_S, STEP_S, COMPILED_STEP_S, OPERATIONS_S, TRAINING_S, UPSCALING_S = 5, 20, 60, 10, 70, 30
RESUMING_S = 90


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="one tiny recipe: shows that everything runs")
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS", help="of this call, at most (480)")
    parser.add_argument(
        "--output", type=Path, default=Path("results/gpu.jsonl"), help="keeps what was measured (results/gpu.jsonl)"
    )
    arguments = parser.parse_args()
    deadline_s = time.perf_counter() + arguments.budget
    device = World().device(arguments.device)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{scratch}/compiled"  # so that nothing is compiled already
        plan = quick_plan(Path(scratch)) if arguments.quick else full_plan()
        planned = measurements(plan, device=device, scratch=Path(scratch))
        rows = measure(planned, device=device, kept=arguments.output, deadline_s=deadline_s)
    print(report(plan, rows))
    return 0


@dataclass(frozen=True)
class Measurement:
    """Something to measure; `expected_s` seconds should suffice for it."""

    what: str
    expected_s: float
    take: Callable[[], Row]


def measurements(plan: Plan, *, device: torch.device, scratch: Path) -> list[Measurement]:
    """All of them, what matters most first."""

    def steps(importance: int) -> list[Measurement]:
        return [
            Measurement(
                key(name, batch, variant),
                COMPILED_STEP_S if variant == COMPILED else STEP_S,
                partial(timed_step, plan, device, name=name, batch=batch, variant=variant),
            )
            for name, batch, variant in combinations(plan)
            if importance_of(plan, name, batch, variant) == importance
        ]

    return [
        Measurement("matrix rate", RATE_S, partial(matrix_rate, plan.matrix_side, device)),
        *steps(0),
        *steps(1),
        *(
            Measurement(f"operations, {name}", OPERATIONS_S, partial(counted, plan, device, name=name))
            for name in plan.recipes
        ),
        Measurement("training run", TRAINING_S, partial(training_run, plan, device, scratch=scratch)),
        *(
            Measurement(f"upscaling, {network}", UPSCALING_S, partial(upscaling, plan, device, network=network))
            for network in UPSCALERS
        ),
        *steps(2),
        Measurement("resumed run", RESUMING_S, partial(resumed_run, plan, device, scratch=scratch)),
        *steps(3),
    ]


def importance_of(plan: Plan, name: str, batch: int, variant: str) -> int:
    """0 for the steps that matter most, 3 for those that matter least."""
    if variant in (RELEASED, DEFAULT, GRAPHS) and batch == plan.batches[0]:
        return 0
    if variant in (RELEASED, DEFAULT, GRAPHS) and "rrdb" in name:
        return 1
    return 2 if variant == COMPILED else 3


def measure(planned: list[Measurement], *, device: torch.device, kept: Path, deadline_s: float) -> dict[str, Row]:
    """Take the measurements that are not in the file `kept` yet, which is written on the way, while there is time.

    Returns all that the file then holds, by its name. Raises UserError where it is of another device.
    """
    rows = {}
    if kept.exists():
        rows = {row["what"]: row for row in map(json.loads, kept.read_text().splitlines())}
    before = rows.get("matrix rate", {}).get("device", name_of(device))
    if before != name_of(device):
        raise UserError(
            f"{kept} holds figures of {before}, but this is {name_of(device)}: name another file (--output)"
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    for measurement in planned:
        started_s = time.perf_counter()
        if measurement.what in rows or started_s + measurement.expected_s > deadline_s:
            continue
        forget(device)
        row = {"what": measurement.what, **attempt(measurement.take)}
        row["took_s"] = round(time.perf_counter() - started_s, 1)
        rows[measurement.what] = row
        print(f"{measurement.what}: {row.get('error', 'done')} ({row['took_s']} s)", file=sys.stderr, flush=True)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if "error" in row and not works(device):
            print("the GPU cannot be used any more by this process; the same command goes on", file=sys.stderr)
            break
    return rows


def forget(device: torch.device) -> None:
    """Let go of what an earlier measurement has left: memory, compiled code."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def attempt(take: Callable[[], Row]) -> Row:
    """The row, or one that says why there is none."""
    try:
        with time_limit(LIMIT_S):
            return take()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return {"error": reason[:200]}


@contextmanager
def time_limit(limit_s: int) -> Iterator[None]:
    """A block that is interrupted by a TimeoutError."""

    def interrupt(*_: object) -> None:
        raise TimeoutError(f"not done after {limit_s} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def works(device: torch.device) -> bool:
    """Whether a GPU still computes: some errors end that for the whole process."""
    try:
        torch.rand(1, device=device)  # which a recording that was broken off can make impossible
        synchronize(device)
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    run(main)
