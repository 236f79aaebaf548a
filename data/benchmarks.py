"""Benchmarks on disk: which LR image belongs to which HR image, in the layouts that are found in the wild.

Set5/GTmod12/baby.png                Set5/LRbicx4/baby.png                     (SwinIR, BasicSR)
Set5/HR/baby.png                     Set5/LR_bicubic/X4/babyx4.png             (EDSR)
DIV2K/DIV2K_valid_HR/0801.png        DIV2K/DIV2K_valid_LR_bicubic/X4/0801x4.png
Set5/image_SRF_4/img_001_SRF_4_HR.png beside img_001_SRF_4_LR.png              (SelfExSR)
photos/a.png                         LR images alone: nothing to score, only to upscale

As a command it makes one from HR images: `python -m data.benchmarks prepare --input FOLDER --name Urban100 --scale 4`.
"""

import argparse
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data import image_jobs
from data.images import IMAGE_SUFFIXES, list_images
from data.pairs import find_pairs, pair_sizes
from data.prepare_benchmark import prepare
from utils.entry import run
from utils.errors import UserError

INPUTS = "input"  # the benchmark of files that were given one by one


@dataclass(frozen=True)
class BenchmarkImage:
    """An LR image and, where there is one, its ground truth."""

    name: str
    lr: Path
    hr: Path | None


@dataclass(frozen=True)
class Benchmark:
    """A named set of images, sorted by name."""

    name: str
    images: tuple[BenchmarkImage, ...]

    @property
    def has_ground_truth(self) -> bool:
        """Whether it can be scored."""
        return self.images[0].hr is not None


def find_benchmark(root: Path, name: str, *, scale: int) -> Benchmark:
    """The benchmark `name` in the folder `root`, or the folder that `name` is itself.

    Raises UserError where there is none, its layout is not known, or its LR and HR images do not fit each other by name
    and size.
    """
    benchmark = _find(root, name, scale)
    for image in benchmark.images:
        if image.hr is not None:
            pair_sizes(image.hr, image.lr, scale=scale)
    return benchmark


def find_inputs(paths: Sequence[Path]) -> list[Benchmark]:
    """Images to upscale: a benchmark without ground truth for each folder, and one called "input" for the files.

    Raises UserError where a path does not exist or is no image by its name, a folder has no image, or two images of
    one benchmark would be written as one PNG.
    """
    folders = [path for path in paths if os.path.isdir(path)]
    files = sorted((path for path in paths if not os.path.isdir(path)), key=lambda path: path.name)
    for path in files:
        if not os.path.exists(path):
            raise UserError(f"{path} does not exist; an image or a folder of images is expected")
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(
                f"{path} is no image by its name; it should end in one of {' '.join(sorted(IMAGE_SUFFIXES))}"
            )
    found = [Benchmark(folder.resolve().name, _without_ground_truth(list_images(folder))) for folder in folders]
    return [*found, Benchmark(INPUTS, _without_ground_truth(files))] if files else found


def _find(root: Path, name: str, scale: int) -> Benchmark:
    folder = root / name
    if not folder.is_dir() and Path(name).is_dir():
        folder = Path(name)
    if not folder.is_dir():
        there = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        near = difflib.get_close_matches(name, there, n=1, cutoff=0.7)
        hint = f" (did you mean {near[0]}?)" if near else ""
        found = ", ".join(there) if there else "no folder at all"
        raise UserError(f"benchmark {name} was not found in {root}{hint}; there is {found}")
    for hr, lr in (
        ("GTmod12", f"LRbicx{scale}"),
        ("HR", f"LR_bicubic/X{scale}"),
        ("DIV2K_valid_HR", f"DIV2K_valid_LR_bicubic/X{scale}"),
    ):
        if (folder / hr).is_dir():
            if not (folder / lr).is_dir():
                raise UserError(f"benchmark {folder} has {hr} but not the LR folder {lr}")
            return Benchmark(folder.name, _paired_folders(folder / hr, folder / lr))
    beside = folder / f"image_SRF_{scale}"
    beside = beside if beside.is_dir() else folder
    if not any(path.is_file() for path in beside.iterdir()):
        raise UserError(
            f"benchmark {folder} has none of the known layouts: GTmod12 with LRbicx{scale}, HR with "
            f"LR_bicubic/X{scale}, DIV2K_valid_HR with DIV2K_valid_LR_bicubic/X{scale}, *_HR.png beside *_LR.png, "
            "or LR images alone"
        )
    return Benchmark(folder.name, _one_folder(beside))


def _paired_folders(hr_folder: Path, lr_folder: Path) -> tuple[BenchmarkImage, ...]:
    return tuple(BenchmarkImage(hr.stem, lr, hr) for hr, lr in find_pairs(hr_folder, lr_folder))


def _one_folder(folder: Path) -> tuple[BenchmarkImage, ...]:
    paths = list_images(folder)
    hr = {path.stem.removesuffix("_HR"): path for path in paths if path.stem.endswith("_HR")}
    if hr:
        lr = {path.stem.removesuffix("_LR"): path for path in paths if path.stem.endswith("_LR")}
        odd = sorted(hr.keys() ^ lr.keys())
        if odd:
            raise UserError(
                f"the {len(hr)} *_HR and {len(lr)} *_LR images of {folder} do not pair up by name: {len(odd)} have no "
                f"partner, such as {', '.join(odd[:5])}"
            )
        return tuple(BenchmarkImage(name, lr[name], hr[name]) for name in sorted(hr))
    return _without_ground_truth(paths)


def _without_ground_truth(paths: list[Path]) -> tuple[BenchmarkImage, ...]:
    images = {}
    for path in paths:
        if path.stem in images:
            raise UserError(f"{images[path.stem].lr} and {path} would both be written as one PNG; rename one of them")
        images[path.stem] = BenchmarkImage(path.stem, path, None)
    return tuple(images.values())


def main() -> int:
    """Make a benchmark from HR images; return the exit code, 1 when some images failed."""
    parser = argparse.ArgumentParser(prog="python -m data.benchmarks", description="Benchmarks on disk.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "prepare",
        help="make GTmod12 and LRbicx4 from HR images",
        description="Make a benchmark from HR images: GTmod12, cut to multiples of 12 pixels, and LRbicx4, shrunk as "
        "MATLAB does, both 8-bit RGB. Understood are folders of HR images alone, of *_HR beside *_LR, and those that "
        "have original, HR, DIV2K_valid_HR, GTmod12 or image_SRF_4 in them.",
    )
    command.add_argument("--input", type=Path, required=True, help="folder of HR images, in any of the usual layouts")
    command.add_argument("--name", required=True, help="name of the benchmark, such as Urban100")
    command.add_argument("--scale", type=int, choices=(2, 3, 4), default=4, help="how many times smaller (default 4)")
    command.add_argument(
        "--output", type=Path, default=Path("Evaluation"), help="folder of the benchmarks (default Evaluation)"
    )
    image_jobs.add_arguments(command)
    args = parser.parse_args()
    image_jobs.check_arguments(args)
    if args.name in ("", "..") or args.name != Path(args.name).name:
        raise UserError(f"--name is {args.name!r}; the name of a folder in {args.output} is expected, such as Urban100")
    return prepare(
        args.input,
        args.output / args.name,
        scale=args.scale,
        workers=args.n_thread,
        compression_level=args.compression_level,
        overwrite=args.overwrite,
        resume=args.resume,
    )


if __name__ == "__main__":
    run(main)
