"""The measurements of `benchmarks/gpu.py`. Each returns a row of figures."""

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import TreeSpec, tree_flatten
from torch.utils.benchmark import Timer

from benchmarks.gpu_plan import BF16, RELEASED, ROOT, VARIANTS, Plan, Row
from benchmarks.inference import compared
from benchmarks.operations import operations
from benchmarks.random_step import random_batch, random_recipe, random_step
from benchmarks.released_step import ReleasedStep
from sed_sr.data.batches import Batch
from sed_sr.data.images import write_image
from sed_sr.data.imresize import imresize
from sed_sr.models.build import records_graphs
from sed_sr.models.cuda_graph import WARM_UP_CALLS, CudaRecorder
from sed_sr.options.schema import Options
from sed_sr.utils.runtime.memory import peak_bytes
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.weights.extractor_file import RANDOM

READY_STEPS = WARM_UP_CALLS + 1  # in the last one, a step is recorded
PROFILED_STEPS = 2
KERNELS_KEPT = 12
WHOLE_PX, TILE_PX = 512, 256


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(side: int, device: torch.device) -> Row:
    """Floating-point operations per second of a product of square bfloat16 matrices."""
    a, b = torch.randn(2, side, side, device=device).bfloat16()
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    median_s = timer.blocked_autorange(min_run_time=1.0).median
    return {"device": name_of(device), "torch": torch.__version__, "tflops": 2 * side**3 / median_s / 1e12}


def counted(plan: Plan, device: torch.device, *, name: str) -> Row:
    """Operations of our step for one image."""
    step, one = random_step(recipe(plan, device, name, batch=1), device)
    return {"tflop_per_image": operations(lambda: step(one)) / 1e12}


def recipe(plan: Plan, device: torch.device, name: str, *, batch: int, **chosen: Any) -> Options:
    return random_recipe(str(plan.recipes[name]), device=device.type, dataloader__batch_size=batch, **chosen)


def timed_step(plan: Plan, device: torch.device, *, name: str, batch: int, variant: str) -> Row:
    """Time and memory of a training step; of those in bfloat16 a profile as well."""
    options, notes = recipe(plan, device, name, batch=batch, **VARIANTS[variant]), []
    started_s = time.perf_counter()
    if variant == RELEASED:
        step = ReleasedStep(options, device)
        lr, hr, _ = random_batch(options, device, scale=step.generator.scale)
        pairs = Batch(lr.contiguous(), hr.contiguous())
    else:
        step, pairs = random_step(options, device)
        if records_graphs(options, device):
            step.record(CudaRecorder, warn=notes.append)
    for _ in range(READY_STEPS):
        outcome = step(pairs)
    synchronize(device)
    ready_s = time.perf_counter() - started_s
    durations = []
    for _ in range(plan.steps):
        started_s = time.perf_counter()
        outcome = step(pairs)
        synchronize(device)
        durations.append(time.perf_counter() - started_s)
    step_s = statistics.median(durations)
    if variant != RELEASED and outcome.broken:
        notes.append(f"not finite: {', '.join(outcome.broken)}")
    row = {
        "images_per_s": batch / step_s,
        "seconds_per_step": step_s,
        "ready_s": ready_s,
        "peak_memory_gib": peak_bytes(device) / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else 0.0,
        "notes": notes,
    }
    return {**row, **(profiled(lambda: step(pairs), device, step_s=step_s) if variant in BF16 else {})}


def profiled(step: Callable[[], object], device: torch.device, *, step_s: float) -> Row:
    """Where the time of a step goes, which takes `step_s` unobserved: kernels on a GPU, operations on a CPU."""
    activity, kind = ProfilerActivity.CPU, DeviceType.CPU
    if device.type == "cuda":
        activity, kind = ProfilerActivity.CUDA, DeviceType.CUDA
    with profile(activities=[activity]) as recorded:
        for _ in range(PROFILED_STEPS):
            step()
        synchronize(device)
    # Annotations span kernels.
    events = [event for event in recorded.events() if event.device_type == kind and not event.is_user_annotation]
    busy_s = busy([(event.time_range.start, event.time_range.end) for event in events]) / 1e6 / PROFILED_STEPS
    totals = Counter()
    for event in events:
        # On a CPU, operations consist of others.
        parts_us = sum(part.time_range.elapsed_us() for part in event.cpu_children)
        totals[event.name] += event.time_range.elapsed_us() - parts_us
    return {
        "idle": max(0.0, 1 - busy_s / step_s),
        "kernels_per_step": len(events) // PROFILED_STEPS,
        "kernels": [[name[:100], us / sum(totals.values())] for name, us in totals.most_common(KERNELS_KEPT)],
    }


def busy(spans: list[tuple[float, float]]) -> float:
    """The time in which something runs, of the starts and ends of all that runs, which may overlap."""
    total, last = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


def training_run(plan: Plan, device: torch.device, *, scratch: Path) -> Row:
    """A run of train.py in bfloat16: its rate near the end, and when it was ready."""
    name, batch = next(iter(plan.recipes)), plan.batches[0]
    first_line_s = train(plan, device, recipe_name=name, scratch=scratch, settings={"name": "run"})
    last = last_figures(scratch / "run")
    rate = last["train"]["images_per_s"]
    return {
        "recipe": name,
        "batch": batch,
        "images_per_s": rate,
        # At full rate, the steps before the first line would have taken this long; what is left lies before the first.
        "first_step_s": first_line_s - (plan.log_every_steps - 1) * batch / rate,
        "seconds": {part: value for part, value in last["time"].items() if part.endswith("_s")},
    }


def resumed_run(plan: Plan, device: torch.device, *, scratch: Path) -> Row:
    """Two deterministic runs of train.py, of which one goes on from a state of the other: do they end the same?"""
    name, total = list(plan.recipes)[-1], plan.training_steps
    saved = total - plan.log_every_steps
    chosen = {"train.deterministic": True, "train.save_every_steps": saved}
    train(plan, device, recipe_name=name, scratch=scratch, settings={**chosen, "name": "whole"})
    start = RunFolder(scratch / "whole").state(saved)
    more = {**chosen, "name": "resumed"}
    train(plan, device, recipe_name=name, scratch=scratch, settings=more, resume=start)
    ends = (torch.load(RunFolder(scratch / run).state(total), weights_only=True) for run in ("whole", "resumed"))
    whole, resumed = (tree_flatten(end["train_step"]) for end in ends)
    return {
        "recipe": name,
        "batch": plan.batches[0],
        "steps": [saved, total - saved],
        "images_per_s": last_figures(scratch / "whole")["train"]["images_per_s"],
        "differing": differing(whole, resumed),
    }


def differing(one: tuple[list, TreeSpec], other: tuple[list, TreeSpec]) -> int:
    """How many tensors and numbers of two flattened states are not the same, bit for bit."""
    (values, structure), (others, other_structure) = one, other
    assert structure == other_structure
    return sum(
        not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b) for a, b in zip(values, others, strict=True)
    )


def train(
    plan: Plan,
    device: torch.device,
    *,
    recipe_name: str,
    scratch: Path,
    settings: dict[str, Any],
    resume: Path | None = None,
) -> float:
    """Run train.py in bfloat16 on made-up sub-images, into a folder of `scratch` that bears the name in `settings`.

    Returns the seconds from the command to the first line that tells of steps.
    """
    if not (scratch / "DF2K").exists():
        write_photographs(scratch / "DF2K", count=plan.photographs)
    settings = {
        "device": device.type,
        "train.total_batch_size": plan.batches[0],
        "train.precision": "bf16",
        "train.total_steps": plan.training_steps,
        "train.log_every_steps": plan.log_every_steps,
        "validation.benchmarks": [],
        "semantic_extractor.weights": RANDOM,
        "losses.perceptual.weights": RANDOM,
        **settings,
    }
    words = ["--opt", plan.recipes[recipe_name], "--data_root", scratch / "DF2K", "--out_root", scratch]
    words += [f"--set={name}={value}" for name, value in settings.items()]
    words += [] if resume is None else ["--resume", resume]
    first_line_s, lines, started_s = None, [], time.perf_counter()
    command = [sys.executable, "-u", ROOT / "train.py", *words]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in process.stdout:
                lines.append(line)
                if first_line_s is None and line.startswith("step "):
                    first_line_s = time.perf_counter() - started_s
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise RuntimeError(f"train.py: {lines[-1].strip() if lines else process.returncode}")
    return first_line_s


def last_figures(run: Path) -> dict[str, Row]:
    """The last values that a run logged, for each kind."""
    return {line["kind"]: line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


def write_photographs(folder: Path, *, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        hr = made_up(480, rng)
        write_image(folder / f"train_sub/{number:04d}.png", hr)
        write_image(folder / f"train_sub_x4/{number:04d}.png", imresize(hr, scale=1 / 4))


def made_up(side_px: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side, 3) uint8: shades with a little noise, of which PNG makes about what it makes of a photograph."""
    shades = rng.integers(0, 256, (8, 8, 3), np.uint8)
    shades = cv2.resize(shades, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
    return cv2.add(shades, rng.integers(0, 8, shades.shape, np.uint8))


def upscaling(plan: Plan, device: torch.device, *, network: str) -> Row:
    """Upscaling of an image, whole and in tiles, beside spandrel's implementation of the same network."""
    sizes = {"whole": WHOLE_PX, "in tiles": TILE_PX}
    ways = {f"{how}, {size}": (how, side) for how in plan.precisions for size, side in sizes.items()}
    return {"ways": compared(network, size=plan.upscaled, ways=ways, repeats=plan.repeats, device=device)}
