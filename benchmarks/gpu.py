"""What a GPU makes of this project: training steps in every way to compute them, a profile, data wait, upscaling.

    python benchmarks/gpu.py                                                    # or: make benchmark-gpu
    python benchmarks/gpu.py --device cpu --quick --output quick.jsonl          # all of it, tiny, on a CPU

Prints a report in Markdown. Every training step is measured by `benchmarks/train_step.py` in a process of its own, so
that memory and what was compiled are its own. What was measured is kept in a file of JSON lines: the same command goes
on where it was, and measures everything anew without that file. What fails is a row that says so.

Ratios are to float32 without TF32 of the same recipe and batch, computed eagerly. The share of the matrix rate is that
of a large product of bfloat16 matrices, measured here as well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from benchmarks.random_step import random_recipe, random_step
from data.images import write_image
from data.imresize import imresize
from models.build import RANDOM
from utils.distributed import World
from utils.entry import run

ROOT = Path(__file__).parents[1]
RECIPES = ("train_rrdb_P+SeD", "train_rrdb_U+SeD", "train_swinir_P+SeD", "train_swinir_U+SeD")
EAGER = {"fp32": ("fp32", None), "tf32": ("tf32", None), "bf16": ("bf16", None)}  # precision, compile
COMPILED = {"bf16, compiled": ("bf16", "default"), "bf16, CUDA graphs": ("bf16", "reduce-overhead")}
UPSCALERS = ("rrdb", "swinir")
TIMEOUT_S = 900  # of one measurement; compilation takes most of it
PROFILED_STEPS = 3
KERNELS_SHOWN = 12
TINY = {
    "generator": {"blocks": 1, "features": 8, "growth": 4},
    "discriminator": {"features": 8},
    "dataset": {"lr_patch_px": 16},
}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    recipes: dict[str, Path]
    batches: tuple[int, ...]
    variants: dict[str, tuple[str, str | None]]
    steps: int  # timed, of each
    matrix_side: int
    photographs: int  # that the training run reads
    training_steps: int
    log_every_steps: int
    upscaled: str  # size of an LR image


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="one tiny recipe: shows that everything runs")
    parser.add_argument(
        "--output", type=Path, default=Path("results/gpu.jsonl"), help="keeps what was measured (results/gpu.jsonl)"
    )
    arguments = parser.parse_args()
    device = World().device(arguments.device)
    with tempfile.TemporaryDirectory() as scratch:
        plan = quick_plan(Path(scratch)) if arguments.quick else full_plan()
        rows = measure(plan, device=device, scratch=Path(scratch), kept=arguments.output)
    print(report(plan, rows))
    return 0


def full_plan() -> Plan:
    """About half an hour on an H100, most of it compilation."""
    return Plan(
        recipes={name: ROOT / f"options/{name}.yml" for name in RECIPES},
        batches=(8, 16),
        variants={**EAGER, **COMPILED},
        steps=10,
        matrix_side=8192,
        photographs=64,
        training_steps=300,
        log_every_steps=100,
        upscaled="512x512",
    )


def quick_plan(scratch: Path) -> Plan:
    tiny = scratch / f"{RECIPES[0]}.yml"
    tiny.write_text(yaml.safe_dump({"extends": str(ROOT / f"options/{RECIPES[0]}.yml"), "name": RECIPES[0], **TINY}))
    return Plan(
        recipes={RECIPES[0]: tiny},
        batches=(2,),
        variants=EAGER,
        steps=1,
        matrix_side=256,
        photographs=2,
        training_steps=2,
        log_every_steps=1,
        upscaled="24x16",
    )


def measure(plan: Plan, *, device: torch.device, scratch: Path, kept: Path) -> dict[str, dict[str, Any]]:
    """Everything that is not in the file `kept` yet, which is written on the way. Returns all of it, by its name."""
    rows = {}
    if kept.exists():
        rows = {row["what"]: row for row in map(json.loads, kept.read_text().splitlines())}

    kept.parent.mkdir(parents=True, exist_ok=True)

    def once(what: str, measurement: Callable[..., dict[str, Any]], *inputs: Any, **named: Any) -> None:
        if what not in rows:
            print(what, file=sys.stderr, flush=True)
            rows[what] = {"what": what, **measurement(*inputs, **named)}
            with kept.open("a") as file:
                file.write(json.dumps(rows[what]) + "\n")

    once("matrix rate", matrix_rate, plan.matrix_side, device)
    for name, batch, variant in combinations(plan):
        once(key(name, batch, variant), timed_step, plan, device, name=name, batch=batch, variant=variant)
    done = [combination for combination in combinations(plan) if "error" not in rows[key(*combination)]]
    if done:
        name, batch, variant = max(done, key=lambda combination: rows[key(*combination)]["images_per_s"])
        once("profile", profiled, plan, device, name=name, batch=batch, variant=variant)
    once("training run", training_run, plan, device, scratch=scratch)
    for network in UPSCALERS:
        flags = ("--network", network, "--size", plan.upscaled, "--device", device.type)
        once(f"upscaling, {network}", output_of, ROOT / "benchmarks/inference.py", *flags)
    return rows


def combinations(plan: Plan) -> list[tuple[str, int, str]]:
    return [(name, batch, variant) for name in plan.recipes for batch in plan.batches for variant in plan.variants]


def key(name: str, batch: int, variant: str) -> str:
    return f"{name}, batch {batch}, {variant}"


def matrix_rate(side: int, device: torch.device) -> dict[str, Any]:
    """Floating-point operations per second of a product of square bfloat16 matrices."""
    a, b = torch.randn(2, side, side, device=device).bfloat16()
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "tflops": 2 * side**3 / timer.blocked_autorange(min_run_time=1.0).median / 1e12}


def timed_step(plan: Plan, device: torch.device, *, name: str, batch: int, variant: str) -> dict[str, Any]:
    precision, compile_mode = plan.variants[variant]
    flags = ["--opt", plan.recipes[name], "--batch", batch, "--steps", plan.steps, "--device", device.type]
    flags += ["--precision", precision, *(("--compile", compile_mode) if compile_mode is not None else ())]
    done = output_of(ROOT / "benchmarks/train_step.py", *flags)
    return done if "error" in done else json.loads(done["output"].splitlines()[-1])


def output_of(script: Path, *arguments: object) -> dict[str, Any]:
    """What a script prints, or the end of what it complains of."""
    command = [sys.executable, str(script), *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {TIMEOUT_S} s"}
    if done.returncode == 0:
        return {"output": done.stdout}
    reasons = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    memory = [line for line in reasons if "out of memory" in line]
    return {"error": (memory or reasons)[-1].strip()[:200]}


def profiled(plan: Plan, device: torch.device, *, name: str, batch: int, variant: str) -> dict[str, Any]:
    """Where the time of a step goes: kernels on a GPU, operations on a CPU."""
    precision, compile_mode = plan.variants[variant]
    compiled = {} if compile_mode is None else {"train__compile": compile_mode}
    options = random_recipe(
        str(plan.recipes[name]), dataloader__batch_size=batch, train__precision=precision, **compiled
    )
    step, pairs = random_step(options, device)

    def steps(count: int) -> None:
        for _ in range(count):
            step(pairs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    steps(plan.steps)  # until everything is compiled and kernels are chosen
    activity, kind = ProfilerActivity.CPU, DeviceType.CPU
    if device.type == "cuda":
        activity, kind = ProfilerActivity.CUDA, DeviceType.CUDA
    with profile(activities=[activity]) as recorded:
        steps(PROFILED_STEPS)
    # Annotations span kernels.
    events = [event for event in recorded.events() if event.device_type == kind and not event.is_user_annotation]
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    totals = Counter()
    for event in events:
        # On a CPU, operations consist of others.
        parts_us = sum(part.time_range.elapsed_us() for part in event.cpu_children)
        totals[event.name] += event.time_range.elapsed_us() - parts_us
    return {
        "step": key(name, batch, variant),
        "idle": idle_share(spans),
        "kernels": [[name, time_us / sum(totals.values())] for name, time_us in totals.most_common(KERNELS_SHOWN)],
    }


def idle_share(spans: list[tuple[float, float]]) -> float:
    """Share of the time, from the first start to the last end, in which nothing runs. In the order of their starts."""
    busy, last = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    return 1 - busy / (last - spans[0][0])


def training_run(plan: Plan, device: torch.device, *, scratch: Path) -> dict[str, Any]:
    """A short run of train.py on sub-images that are made here: its rate, and what its time goes to, near the end."""
    (name, recipe), *_ = plan.recipes.items()
    batch = plan.batches[0]
    rng = np.random.default_rng(0)
    for number in range(plan.photographs):
        hr = made_up(480, rng)
        write_image(scratch / f"DF2K/train_sub/{number:04d}.png", hr)
        write_image(scratch / f"DF2K/train_sub_x4/{number:04d}.png", imresize(hr, scale=1 / 4))
    chosen = {
        "name": "run",
        "device": device.type,
        "dataloader.batch_size": batch,
        "train.precision": "bf16",
        "train.total_steps": plan.training_steps,
        "train.log_every_steps": plan.log_every_steps,
        "validation.benchmarks": [],
        "semantic_extractor.weights": RANDOM,
        "losses.perceptual.vgg_weights": RANDOM,
    }
    settings = [f"--set={key}={value}" for key, value in chosen.items()]
    folders = ("--data_root", scratch / "DF2K", "--out_root", scratch)
    done = output_of(ROOT / "train.py", "--opt", recipe, *folders, *settings)
    if "error" in done:
        return done
    lines = map(json.loads, (scratch / "run/metrics.jsonl").read_text().splitlines())
    last = {line["kind"]: line for line in lines}
    seconds = {part: value for part, value in last["time"].items() if part.endswith("_s")}
    return {"recipe": name, "batch": batch, "images_per_s": last["train"]["images_per_s"], "seconds": seconds}


def made_up(side_px: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side, 3) uint8: shades with a little noise, of which PNG makes about what it makes of a photograph."""
    shades = rng.integers(0, 256, (8, 8, 3), np.uint8)
    shades = cv2.resize(shades, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
    return cv2.add(shades, rng.integers(0, 8, shades.shape, np.uint8))


def report(plan: Plan, rows: dict[str, dict[str, Any]]) -> str:
    """All that was measured, in Markdown."""
    rate = rows["matrix rate"]
    lines = [
        f"{rate['device']}, PyTorch {torch.__version__}; bf16 matrix product: {rate['tflops']:.4g} TFLOP/s",
        "",
        "| recipe | batch | variant | images/s | ratio | share of the matrix rate | peak memory (GiB) | less |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for name, batch, variant in combinations(plan):
        cells = figures(rows[key(name, batch, variant)], rows[key(name, batch, "fp32")], tflops=rate["tflops"])
        lines.append(f"| {name} | {batch} | {variant} | {' | '.join(cells)} |")
    if "profile" in rows:
        found = rows["profile"]
        lines += ["", f"Profile of {found['step']}: idle {found['idle']:.1%} of the time", ""]
        lines += ["| share | kernel |", "|--:|---|"]
        lines += [f"| {share:.1%} | `{kernel[:100]}` |" for kernel, share in found["kernels"]]
    found = rows["training run"]
    lines += ["", f"train.py: {found.get('error') or summary(found)}"]
    for network in UPSCALERS:
        found = rows[f"upscaling, {network}"]
        lines += ["", f"Upscaling, {network}:", "", found.get("error") or found["output"].rstrip()]
    return "\n".join(lines)


def figures(row: dict[str, Any], fp32: dict[str, Any], *, tflops: float) -> list[str]:
    """Cells of the table for a training step, beside the eager one in float32."""
    if "error" in row:
        return [row["error"].replace("|", "/"), "", "", "", ""]
    cells = [f"{row['images_per_s']:.4g}", "", "", f"{row['peak_memory_gib']:.3g}", ""]
    if "error" not in fp32:
        cells[1] = f"{row['images_per_s'] / fp32['images_per_s']:.2f}"
        # The operations of the eager step: those of compiled code are not all seen.
        cells[2] = f"{fp32['tflop_per_step'] / row['seconds_per_step'] / tflops:.1%}"
        cells[4] = f"{1 - row['peak_memory_gib'] / fp32['peak_memory_gib']:.0%}"
    return cells


def summary(found: dict[str, Any]) -> str:
    total_s = sum(found["seconds"].values())
    shares = (f"{part.removesuffix('_s')} {spent_s / total_s:.2%}" for part, spent_s in found["seconds"].items())
    rate = f"{found['images_per_s']:.4g} images/s"
    return f"{found['recipe']}, batch {found['batch']}, bf16: {rate}; of the time {', '.join(shares)}"


if __name__ == "__main__":
    run(main)
