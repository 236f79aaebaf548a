"""Upscale a made-up LR image as `test.py` does, beside spandrel's implementation of the same network.

    python benchmarks/inference.py --network swinir --size 120x80

Prints one line of JSON for each way. The networks are those published (RRDB of 23 blocks, SwinIR-M) with the same
random weights, which do not change the time. spandrel's is called as its users call it, `model(x)` in float32 (on a GPU
with TF32); ours by `utils.evaluation.upscaler.Upscaler`, from 8 bits to 8 bits, in each precision that the device has.
They take turns, and the figures are medians. `psnr_to_fp32` compares the SR with that of our network in float32, in dB
over RGB; null: equal.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import spandrel
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from sed_sr.models.cuda_graph import WARM_UP_CALLS
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.options.cli import run
from sed_sr.utils.evaluation.upscaler import Upscaler
from sed_sr.utils.runtime.distributed import World

NETWORKS = {"rrdb": RRDBNet, "swinir": SwinIR}
SPANDREL = "spandrel"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(NETWORKS), required=True)
    parser.add_argument("--size", default="120x80", metavar="WIDTHxHEIGHT", help="of the LR image, in pixels (120x80)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls after some that are not (5)")
    parser.add_argument("--tile_px", type=int, help="side of a tile in LR pixels (found from free memory)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    device = World().device(arguments.device)
    precisions = ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16")
    for row in compared(
        arguments.network,
        size=arguments.size,
        ways={precision: (precision, arguments.tile_px) for precision in precisions},
        repeats=arguments.repeats,
        device=device,
    ):
        print(json.dumps(row))
    return 0


def compared(
    network: str, *, size: str, ways: dict[str, tuple[str, int | None]], repeats: int, device: torch.device
) -> list[dict[str, Any]]:
    """One row for spandrel's way to upscale an image, and for each of ours.

    Args:
        network: rrdb or swinir.
        size: of the LR image, WIDTHxHEIGHT.
        ways: name -> precision, and the side of a tile in LR pixels (None: found from free memory).
        repeats: timed calls of each.
    """
    width, height = map(int, size.split("x"))
    torch.manual_seed(0)
    ours = NETWORKS[network]()
    other = spandrel.ModelLoader(device).load_from_state_dict(copy.deepcopy(ours.state_dict())).model.eval()
    ours.to(device, memory_format=torch.channels_last)
    lr = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    tensor = torch.from_numpy(lr).permute(2, 0, 1)[None].to(device).float().contiguous() / 255

    @torch.inference_mode()
    def by_spandrel() -> None:
        with tf32_everywhere():
            other(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    upscalers = {name: Upscaler(ours, device, precision=how, tile_px=side) for name, (how, side) in ways.items()}
    calls = {SPANDREL: by_spandrel}
    for name, upscale in upscalers.items():
        calls[name] = lambda upscale=upscale: upscale([lr], note)
    # On a GPU, the call after the warm-up is the one that is recorded.
    seconds = medians_s(calls, repeats, warm_up_calls=WARM_UP_CALLS + 1 if device.type == "cuda" else 1)
    (full,) = Upscaler(ours, device)([lr], note)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}"
    rows = []
    for name, duration_s in seconds.items():
        row = {
            "network": network,
            "device": machine,
            "lr": size,
            "by": name,
            "seconds": round(duration_s, 4),
            "images_per_s": round(1 / duration_s, 3),
            "sr_megapixels_per_s": round(ours.scale**2 * width * height / duration_s / 1e6, 3),
            "times_spandrel": round(seconds[SPANDREL] / duration_s, 2),
        }
        if name in upscalers:
            row["psnr_to_fp32"] = psnr(upscalers[name]([lr], note)[0], full)
        rows.append(row)
    return rows


@contextmanager
def tf32_everywhere() -> Iterator[None]:
    """A block in which float32 convolutions and matrix products of a GPU may use TF32."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = True
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def note(text: str) -> None:
    print(text, file=sys.stderr)


def medians_s(calls: dict[str, Callable[[], object]], repeats: int, *, warm_up_calls: int) -> dict[str, float]:
    """Of each call's durations, the calls taking turns; the first ones, in which kernels are chosen, do not count."""
    durations = {name: [] for name in calls}
    for _ in range(warm_up_calls + repeats):
        for name, once in calls.items():
            started_s = time.perf_counter()
            once()
            durations[name].append(time.perf_counter() - started_s)
    return {name: statistics.median(each[warm_up_calls:]) for name, each in durations.items()}


def psnr(image: np.ndarray, reference: np.ndarray) -> float | None:
    error = np.mean((image.astype(float) - reference) ** 2)
    return round(10 * np.log10(255**2 / error), 2) if error else None


if __name__ == "__main__":
    run(main)
