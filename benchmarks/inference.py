"""Upscale a made-up LR image as `test.py` does, beside spandrel's implementation of the same network.

    python benchmarks/inference.py --network swinir --size 120x80

Prints one line of JSON for each way. The networks are those published (RRDB of 23 blocks, SwinIR-M) with the same
random weights, which do not change the time. spandrel's is called as its users call it, `model(x)` in float32; ours by
`utils.upscaler.Upscaler`, from 8 bits to 8 bits, in each precision that the device has. They take turns, and the
figures are medians. `psnr_to_fp32` compares the SR with that of our network in float32, in dB over RGB; null: equal.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import spandrel
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from models.rrdb import RRDBNet
from models.swinir import SwinIR
from utils.distributed import World
from utils.entry import run
from utils.upscaler import Upscaler

NETWORKS = {"rrdb": RRDBNet, "swinir": SwinIR}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(NETWORKS), required=True)
    parser.add_argument("--size", default="120x80", metavar="WIDTHxHEIGHT", help="of the LR image, in pixels (120x80)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls after one that is not (5)")
    parser.add_argument("--tile_px", type=int, help="side of a tile in LR pixels (found from free memory)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    device = World().device(arguments.device)

    torch.manual_seed(0)
    network = NETWORKS[arguments.network]()
    other = spandrel.ModelLoader(device).load_from_state_dict(copy.deepcopy(network.state_dict())).model.eval()
    network.to(device, memory_format=torch.channels_last)
    lr = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    tensor = torch.from_numpy(lr).permute(2, 0, 1)[None].to(device).float().contiguous() / 255

    @torch.inference_mode()
    def by_spandrel() -> None:
        other(tensor)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    upscalers = {
        precision: Upscaler(network, device, precision=precision, tile_px=arguments.tile_px)
        for precision in (("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16"))
    }
    calls = {"spandrel": by_spandrel}
    for precision, upscale in upscalers.items():
        calls[precision] = lambda upscale=upscale: upscale([lr], note)
    seconds = medians_s(calls, arguments.repeats)
    full = upscalers["fp32"]([lr], note)[0]
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}"
    for name, duration_s in seconds.items():
        report = {
            "network": arguments.network,
            "device": machine,
            "lr": arguments.size,
            "by": name,
            "seconds": round(duration_s, 4),
            "images_per_s": round(1 / duration_s, 3),
            "sr_megapixels_per_s": round(network.scale**2 * width * height / duration_s / 1e6, 3),
            "times_spandrel": round(seconds["spandrel"] / duration_s, 2),
        }
        if name in upscalers:
            report["psnr_to_fp32"] = psnr(upscalers[name]([lr], note)[0], full)
        print(json.dumps(report), flush=True)
    return 0


def note(text: str) -> None:
    print(text, file=sys.stderr)


def medians_s(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Of each call's durations, the calls taking turns; the first ones, in which kernels are chosen, do not count."""
    durations = {name: [] for name in calls}
    for _ in range(1 + repeats):
        for name, once in calls.items():
            started_s = time.perf_counter()
            once()
            durations[name].append(time.perf_counter() - started_s)
    return {name: statistics.median(each[1:]) for name, each in durations.items()}


def psnr(image: np.ndarray, reference: np.ndarray) -> float | None:
    error = np.mean((image.astype(float) - reference) ** 2)
    return round(10 * np.log10(255**2 / error), 2) if error else None


if __name__ == "__main__":
    run(main)
