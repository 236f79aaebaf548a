"""Time what lies between a command and its first step with a large training set, and weigh its index.

    python benchmarks/startup.py --root /tmp/startup --pairs 800000

The set is made once, in --root: a hundred pictures under as many names as asked for (hard links), 480x480 and 120x120,
so that listing, pairing and opening cost what they cost and the disk holds 40 MB; their contents come from the page
cache. A run of train.py is timed from the command to the log's line of the first step: P+SeD with CLIP RN50 and VGG19
of random weights and a tiny generator, so that the step itself hardly counts. Then the phases are, one by one, in this
process, and the memory that reading processes have for themselves (Private_Dirty) is compared with that for a set of a
hundred pairs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from sed_sr.options.cli import run

ROOT = Path(__file__).parents[1]
PICTURES = 100
NAMES_PER_IMAGE = 200  # 0001_s000.png to 0001_s199.png
RECIPE = ROOT / "options/train_rrdb_P+SeD.yml"
SETTINGS = {
    "device": "cpu",
    "generator.features": "4",
    "generator.blocks": "1",
    "generator.growth": "4",
    "semantic_extractor.weights": "random",
    "losses.perceptual.weights": "random",
    "dataset.hr_patch_px": "64",
    "train.total_batch_size": "1",
    "dataloader.num_workers": "2",
    "train.total_steps": "1",
    "train.log_every_steps": "1",
    "validation.benchmarks": "[]",
}
Result = TypeVar("Result")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, metavar="FOLDER", help="where the set is, or will be made")
    parser.add_argument("--pairs", type=int, default=800_000, help="HR and LR sub-images each (800000)")
    parser.add_argument("--runs", type=int, default=3, help="of train.py (3); the median counts")
    arguments = parser.parse_args()
    large, small = (folder_of(arguments.root, pairs) for pairs in (arguments.pairs, PICTURES))
    report = {"pairs": arguments.pairs}
    first_steps_s = [seconds_to_first_step(large) for _ in range(arguments.runs)]
    report["seconds_to_first_step"] = round(statistics.median(first_steps_s), 1)
    report["slowest"] = round(max(first_steps_s), 1)
    report["phases_s"], report["memory_mb"] = phases(large, small)
    print(json.dumps(report, indent=2))
    return 0


def folder_of(root: Path, pairs: int) -> Path:
    """A training set of so many pairs; made where it is not there yet."""
    folder = root / f"{pairs}_pairs"
    if (folder / "complete").exists():
        return folder
    started_s = time.perf_counter()
    rng = np.random.default_rng(0)
    for name in ("pictures", "train_sub", "train_sub_x4"):
        (folder / name).mkdir(parents=True)
    for number in range(PICTURES):
        picture = cv2.resize(rng.integers(0, 256, (30, 30, 3), np.uint8), (480, 480), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(f"{folder}/pictures/train_sub_{number}.png", picture)
        shrunk = cv2.resize(picture, (120, 120), interpolation=cv2.INTER_AREA)
        cv2.imwrite(f"{folder}/pictures/train_sub_x4_{number}.png", shrunk)
    for number in range(pairs):
        image, subimage = divmod(number, NAMES_PER_IMAGE)
        for name in ("train_sub", "train_sub_x4"):
            picture = f"{folder}/pictures/{name}_{number % PICTURES}.png"
            os.link(picture, f"{folder}/{name}/{image:04d}_s{subimage:03d}.png")
    (folder / "complete").touch()
    print(f"made {folder} in {time.perf_counter() - started_s:.0f} s", file=sys.stderr)
    return folder


def settings_of(folder: Path, out_root: str) -> list[str]:
    chosen = {**SETTINGS, "paths.data_root": str(folder), "paths.out_root": out_root}
    return [f"{key}={value}" for key, value in chosen.items()]


def seconds_to_first_step(folder: Path) -> float:
    """From the command to the log's line of the first step."""
    with tempfile.TemporaryDirectory() as out_root:
        words = [word for setting in settings_of(folder, out_root) for word in ("--set", setting)]
        command = [sys.executable, "-u", str(ROOT / "train.py"), "--opt", str(RECIPE), *words]
        started_s = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            (first_s,) = (time.perf_counter() - started_s for line in process.stdout if "step 1/1" in line)
        assert process.returncode == 0
    return first_s


def phases(large: Path, small: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of what happens before the first step, and megabytes of the index in the main process and in readers."""
    took_s = {}

    def timed(what: str, compute: Callable[[], Result]) -> Result:
        started_s = time.perf_counter()
        result = compute()
        took_s[what] = round(time.perf_counter() - started_s, 2)
        return result

    def import_all() -> None:
        import sed_sr.utils.train_run  # noqa: F401

    timed("imports", import_all)
    import torch

    from benchmarks.random_step import random_train_step
    from sed_sr.data.batches import GivenPairs
    from sed_sr.data.datasets import PairedImages
    from sed_sr.data.loader import SampleStream, make_loader
    from sed_sr.data.pair_content import check_content
    from sed_sr.data.pairs import check_pairs, find_pairs
    from sed_sr.options.recipe import Override, load_options
    from sed_sr.utils.training.image_checks import COMPARED_PAIRS

    overrides = [Override.parse(setting) for setting in settings_of(large, "unused")]
    options = timed("options", lambda: load_options(RECIPE, overrides))
    before_mb = memory_mb("self", "Rss")
    pairs = timed("listing and pairing", lambda: find_pairs(large / "train_sub", large / "train_sub_x4"))
    memory = {
        "names": round((pairs.hr.names.nbytes + pairs.lr.names.nbytes) / 1e6, 1),
        "main process grew by": round(memory_mb("self", "Rss") - before_mb, 1),
    }
    timed("every header", lambda: check_pairs(pairs, scale=4, lr_patch_px=16))
    timed("content of some", lambda: check_content(pairs, scale=4, samples=COMPARED_PAIRS, seed=1))
    cpu = torch.device("cpu")
    step = timed("networks", lambda: random_train_step(options, cpu))

    readers_mb = []
    for folder in (large, small):
        dataset = PairedImages(folder / "train_sub", folder / "train_sub_x4", scale=4, lr_patch_px=16)
        stream = SampleStream(len(dataset), batch_size=1, batches=200)
        batches = iter(make_loader(dataset, stream, num_workers=2, device_type="cpu"))
        batch = timed("first batch", lambda batches=batches: next(batches))
        for _ in range(100):
            next(batches)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        readers_mb.append(statistics.mean(memory_mb(child, "Private_Dirty") for child in children))
        batches.close()
    memory["each reader has for itself"], memory["of a hundred pairs"] = (round(value, 1) for value in readers_mb)
    timed("first step", lambda: step(GivenPairs()(batch, seed=0, device=cpu)))
    return took_s, memory


def memory_mb(process: str, kind: str) -> float:
    """A figure of a process's memory, as Linux counts it."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{kind}:"))


if __name__ == "__main__":
    run(main)
