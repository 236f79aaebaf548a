"""Upscale a made-up LR image x4, from a file to a file, and print the memory that it took as one line of JSON.

    python benchmarks/upscale_memory.py --size 8000x6000 --features 8 --blocks 1 --growth 8

The generator is RRDB with random weights, which change neither memory nor time; `--bicubic` interpolates in its place.
`before_mb` is the resident size of the process (Linux) once its libraries are at work, `peak_mb` the largest one from
there until the SR image is written, and `images_mb` what of it the LR and the SR image are.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from sed_sr.data.images import read_rgb, write_image
from sed_sr.models.rrdb import RRDBNet
from sed_sr.options.cli import run
from sed_sr.utils.evaluation.upscaler import Upscaler, bicubic

CPU = torch.device("cpu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", required=True, metavar="WIDTHxHEIGHT", help="of the LR image, in pixels")
    parser.add_argument("--bicubic", action="store_true", help="interpolate")
    parser.add_argument("--features", type=int, default=64, help="of RRDB (64)")
    parser.add_argument("--blocks", type=int, default=23, help="of RRDB (23)")
    parser.add_argument("--growth", type=int, default=32, help="of RRDB (32)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--tile_px", type=int, help="side of a tile in LR pixels (found from free memory)")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    if arguments.bicubic:
        upscale = bicubic(4)
    else:
        generator = RRDBNet(features=arguments.features, blocks=arguments.blocks, growth=arguments.growth)
        generator = generator.to(memory_format=torch.channels_last)
        upscale = Upscaler(generator, CPU, precision=arguments.precision, tile_px=arguments.tile_px)
    upscale([np.zeros((64, 64, 3), np.uint8)], print)  # what libraries take when they are first used
    with tempfile.TemporaryDirectory() as folder:
        lr_path, sr_path = Path(folder, "lr.png"), Path(folder, "sr.png")
        write_image(lr_path, made_up(height, width))
        before_mb = resident_mb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        started_s = time.perf_counter()
        lr = read_rgb(lr_path)
        (sr,) = upscale([lr], print)
        upscaled_s = time.perf_counter()
        write_image(sr_path, sr)
        written_s = time.perf_counter()
    report = {
        "size": arguments.size,
        "before_mb": before_mb,
        "peak_mb": resident_mb("VmHWM"),
        "images_mb": (lr.nbytes + sr.nbytes) // 10**6,
        "seconds": round(upscaled_s - started_s, 1),
        "writing_seconds": round(written_s - upscaled_s, 1),
    }
    print(json.dumps(report))
    return 0


def resident_mb(key: str) -> int:
    """VmRSS, the resident size of this process, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 // 10**6 for line in lines if line.startswith(f"{key}:"))


def made_up(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: shades with a little noise, repeated."""
    rng = np.random.default_rng(0)
    cell = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (500, 500), interpolation=cv2.INTER_CUBIC)
    cell = cv2.add(cell, rng.integers(0, 8, cell.shape, np.uint8))
    return np.tile(cell, (-(-height // 500), -(-width // 500), 1))[:height, :width]


if __name__ == "__main__":
    run(main)
