"""Time the loader of a training run, from PNG sub-images and from packs, and print one line of JSON.

    python benchmarks/loader.py --photographs DF2K/train --workers 1 2

Sub-images of 480 and 120 pixels are cut from images made of the photographs; the files are cached. `read_us` is what
reading and decoding takes for a pair, `sample_us` the whole sample: crop, turn and layout too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from benchmarks.photographs import write_mosaics
from sed_sr.data.datasets import PairedImages
from sed_sr.data.image_folders import read_image
from sed_sr.data.loader import BATCHES_AHEAD, SampleStream, make_loader
from sed_sr.options.cli import run

ROOT = Path(__file__).parents[1]
BATCH = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of images to make larger ones of")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of worker processes (1 2)")
    parser.add_argument("--batches", type=int, default=100, help="timed for each number of workers (100)")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_mosaics(arguments.photographs, root / "hr", count=8)
        python("-m", "data.prepare.lr_images", "--input", root / "hr", "--output", root / "x4", "--scale", 4)
        for kind, words in (("png", ()), ("pack", ("--pack",))):
            outputs = root / kind, root / f"{kind}_x4"
            lr = ("--input_lr", root / "x4", "--output_lr", outputs[1])
            python(ROOT / "extract_subimages.py", "--input", root / "hr", "--output", outputs[0], *lr, *words)
            report[kind] = times(PairedImages(*outputs, scale=4, lr_patch_px=64), arguments.workers, arguments.batches)
    print(json.dumps(report))
    return 0


def python(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def times(dataset: PairedImages, workers: list[int], batches: int) -> dict[str, float]:
    keys = [(0, index) for index in range(len(dataset))]
    start_s = time.perf_counter()
    for _, index in keys:
        for image in dataset.pairs[index]:
            read_image(image)
    read_s = time.perf_counter() - start_s
    for key in keys:
        dataset[key]
    sample_s = time.perf_counter() - start_s - read_s
    report = {"read_us": round(read_s / len(keys) * 1e6), "sample_us": round(sample_s / len(keys) * 1e6)}
    for number in workers:
        warm_up = BATCHES_AHEAD * number  # filled while nobody takes any
        stream = SampleStream(len(dataset), batch_size=BATCH, batches=warm_up + batches)
        for taken, _ in enumerate(make_loader(dataset, stream, num_workers=number, device_type="cpu"), 1):
            if taken == warm_up:
                start_s = time.perf_counter()
        report[f"pairs_per_s_by_{number}"] = round(batches * BATCH / (time.perf_counter() - start_s))
    return report


if __name__ == "__main__":
    run(main)
