"""Time extract_subimages.py against a plain loop over the same tiles, per core, and print one line of JSON.

    python benchmarks/extraction.py --photographs DF2K/train --count 200 --workers 1 2

Images of 2040x1356 are made of the photographs first. The loop reads with cv2.imread and writes with cv2.imwrite, with
the same compression, and does not see to it that a file is whole or reaches the disk; the command flushes all of its
files to the disk at the end. Everything is held to as many cores as there are workers, the command with all of its
processes too; on several cores as many loops share the images. `overhead` is the command's time beyond the loops', as a
part of that (0.1 is 10 %); both from their start. `check` is --resume over a finished folder: every file is checked.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, from anywhere

from benchmarks.photographs import write_mosaics
from sed_sr.data.images import list_images
from sed_sr.data.prepare.grid import Grid
from sed_sr.options.cli import run

COMMAND = Path(__file__).parents[1] / "extract_subimages.py"
GRID = Grid(crop_px=480, step_px=240, thresh_px=0)
LEVEL = 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of images to make larger ones of")
    parser.add_argument("--count", type=int, default=200, help="images of 2040x1356 (200)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of worker processes (1 2)")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_mosaics(arguments.photographs, root / "images", count=arguments.count)
        report = {"images": arguments.count}
        for workers in arguments.workers:
            os.sched_setaffinity(0, cores[:workers])
            plain_s = seconds(plain_loops, root / "images", root / f"plain_{workers}", workers)
            tiles = len(list_images(root / f"plain_{workers}"))
            command_s = seconds(command, root / "images", root / f"by_{workers}", workers)
            check_s = seconds(command, root / "images", root / f"by_{workers}", workers, "--resume")
            pack_s = seconds(command, root / "images", root / f"pack_{workers}", workers, "--pack")
            report[f"cores_{workers}"] = {
                "loop_tiles_per_s": round(tiles / plain_s, 1),
                "command_tiles_per_s": round(tiles / command_s, 1),
                "overhead": round(command_s / plain_s - 1, 3),
                "check_tiles_per_s": round(tiles / check_s, 1),
                "pack_tiles_per_s": round(tiles / pack_s, 1),
            }
        report |= {f"{kind}_mb": round(megabytes(root / f"{kind}_{workers}")) for kind in ("by", "pack")}
    print(json.dumps(report))
    return 0


def plain_loops(source: Path, output: Path, loops: int) -> None:
    output.mkdir()
    paths = list_images(source)
    with ProcessPoolExecutor(loops, multiprocessing.get_context("spawn")) as executor:
        for done in [executor.submit(plain_loop, paths[first::loops], output) for first in range(loops)]:
            done.result()


def plain_loop(paths: list[Path], output: Path) -> None:
    """What everybody would write."""
    cv2.setNumThreads(1)
    how = [cv2.IMWRITE_PNG_COMPRESSION, LEVEL, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FAST_FILTERS]
    for path in paths:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for number, (top, left) in enumerate(GRID.boxes(*image.shape[:2]), 1):
            tile = image[top : top + GRID.crop_px, left : left + GRID.crop_px]
            cv2.imwrite(str(output / f"{path.stem}_s{number:03d}.png"), tile, how)


def command(source: Path, output: Path, workers: int, *arguments: str) -> None:
    words = ["--input", source, "--output", output, "--n_thread", workers, "--compression_level", LEVEL]
    words += ["--crop_size", GRID.crop_px, "--step", GRID.step_px, *arguments]
    subprocess.run([sys.executable, COMMAND, *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def seconds(once: Callable[..., None], *arguments: object) -> float:
    os.sync()  # what was written before is not to be flushed within the time
    start_s = time.perf_counter()
    once(*arguments)
    return time.perf_counter() - start_s


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


if __name__ == "__main__":
    run(main)
