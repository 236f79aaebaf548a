"""Benchmarks on disk: which LR image belongs to which HR image, in the layouts of published benchmarks.

Set5/GTmod12/baby.png                Set5/LRbicx4/baby.png                     (SwinIR, BasicSR)
Set5/HR/baby.png                     Set5/LR_bicubic/X4/babyx4.png             (EDSR)
DIV2K/DIV2K_valid_HR/0801.png        DIV2K/DIV2K_valid_LR_bicubic/X4/0801x4.png
Set5/image_SRF_4/img_001_SRF_4_HR.png beside img_001_SRF_4_LR.png              (SelfExSR)
RealSR/Canon/Test/4/Canon_001_HR.png beside Canon_001_LR4.png, and Nikon's     (RealSR, version 3)
DRealSR/Test_x4/test_HR/sony_1_x4.png   DRealSR/Test_x4/test_LR/sony_1_x1.png  (DRealSR: LR has the focal length x1)
RealSR/test_HR/Canon_004_HR.png      RealSR/test_LR/Canon_004_LR4.png          (crops of these two, StableSR)
photos/a.png                         LR images alone: no ground truth

`data.prepare.benchmark` makes a benchmark from HR images.
"""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sed_sr.data.image_folders import first_few
from sed_sr.data.images import IMAGE_SUFFIXES, has_suffix, image_size, list_images
from sed_sr.data.pairs import find_file_pairs, near_pairs, pair_sizes
from sed_sr.options.cli import renamed_command
from sed_sr.options.errors import UserError, did_you_mean

INPUTS = "input"  # name of the benchmark of single files
# Other formats of photographs. OpenCV reads some; the others are reported instead of skipped.
OTHER_SUFFIXES = frozenset({".avif", ".gif", ".heic", ".heif", ".jxl"})
MARK = r"(?<=.)_(HR|LR\d?|x\d)$"  # ending of a stem: HR or LR, or the focal length


@dataclass(frozen=True)
class BenchmarkImage:
    """An LR image and its ground truth, if it has one."""

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
        """Whether there are HR images to compare with."""
        return self.images[0].hr is not None


def find_benchmark(root: Path, name: str, *, scale: int) -> Benchmark:
    """The benchmark `name` in the folder `root`, or in the folder `name` itself.

    Raises UserError when it does not exist, its layout is unknown, or its images do not pair by name and size.
    """
    benchmark = _find(root, name, scale)
    for image in benchmark.images:
        if image.hr is not None:
            _check_sizes(image.hr, image.lr, scale)
    return benchmark


def find_inputs(paths: Sequence[Path]) -> list[Benchmark]:
    """Images to upscale: a benchmark without ground truth for each folder, and one called "input" for all files.

    Raises UserError when a path does not exist or is not an image by its name, a folder has no image, or two images of
    one benchmark would be written as one PNG.
    """
    folders = [path for path in paths if os.path.isdir(path)]
    files = sorted((path for path in paths if not os.path.isdir(path)), key=lambda path: path.name)
    for path in files:
        if not os.path.exists(path):
            raise UserError(f"{path} does not exist; an image or a folder of images is expected")
        if path.suffix.lower() not in IMAGE_SUFFIXES | OTHER_SUFFIXES:
            raise UserError(
                f"{path} is not an image by its name; an ending among {' '.join(sorted(IMAGE_SUFFIXES))} is expected"
            )
    benchmarks = [Benchmark(folder.resolve().name, _without_ground_truth(_photographs(folder))) for folder in folders]
    return [*benchmarks, Benchmark(INPUTS, _without_ground_truth(files))] if files else benchmarks


def _find(root: Path, name: str, scale: int) -> Benchmark:
    folder = _folder(root, name)
    if folder.name == str(scale) and folder.parent.name == "Test":
        folder = folder.parent.parent  # RealSR/Canon/Test/4 belongs to Canon
    for hr, lr, paired in (
        ("GTmod12", f"LRbicx{scale}", _paired_folders),
        ("HR", f"LR_bicubic/X{scale}", _paired_folders),
        ("DIV2K_valid_HR", f"DIV2K_valid_LR_bicubic/X{scale}", _paired_folders),
        (f"Test_x{scale}/test_HR", f"Test_x{scale}/test_LR", _marked_folders),
        ("test_HR", "test_LR", _marked_folders),
    ):
        if (folder / hr).is_dir():
            if not (folder / lr).is_dir():
                raise UserError(
                    f"benchmark {folder} has {hr} but not the LR folder {lr}{_how_to_make_lr(folder, hr, scale)}"
                )
            return Benchmark(folder.name, paired(folder / hr, folder / lr))
    real = f"Test/{scale}"
    beside = [folder / f"image_SRF_{scale}", folder / real, *sorted(folder.glob(f"*/{real}"))]
    beside = [each for each in beside if each.is_dir()]
    if not beside and not any(path.is_file() for path in folder.iterdir()):
        raise UserError(
            f"benchmark {folder} has none of the known layouts: GTmod12 with LRbicx{scale}, HR with "
            f"LR_bicubic/X{scale}, DIV2K_valid_HR with DIV2K_valid_LR_bicubic/X{scale}, test_HR with test_LR (DRealSR: "
            f"in Test_x{scale}), *_HR.png beside *_LR.png or *_LR{scale}.png (RealSR: in <camera>/{real}), or LR "
            f"images alone{_how_to_make_lr(folder, 'original', scale) if (folder / 'original').is_dir() else ''}"
        )
    paths = [path for each in beside or [folder] for path in _photographs(each)]
    hr = [path for path in paths if path.stem.endswith("_HR")]
    if not hr:
        return Benchmark(folder.name, _without_ground_truth(paths))
    lr = [path for path in paths if path.stem.endswith(("_LR", f"_LR{scale}"))]
    if not lr and beside in ([], [folder / f"image_SRF_{scale}"]):
        raise UserError(
            f"benchmark {folder} has HR images ({hr[0].name}), but no *_LR or *_LR{scale} beside them"
            f"{_how_to_make_lr(folder, hr[0].parent.name, scale)}"
        )
    return Benchmark(folder.name, _marked(hr, lr, where=str(folder)))


def _how_to_make_lr(folder: Path, hr: str, scale: int) -> str:
    """A hint for an error message: the command that makes LR images from the HR images in `hr` of a benchmark's folder.

    Empty where LR images are photographs too, and for x1, where they are not smaller.
    """
    if hr.endswith("test_HR") or scale == 1:
        return ""
    # data.prepare.benchmark writes GTmod12, and would read and write the same folder
    words = (
        ("data.prepare.lr_images", "--input", folder / hr, "--output", folder / f"LRbicx{scale}")
        if hr == "GTmod12"
        else ("data.prepare.benchmark", "--input", folder, "--name", folder.name, "--output", folder.parent)
    )
    command = shlex.join(["python", "-m", *map(str, words), "--scale", str(scale)])
    return f"; to make LR images of the HR images: {command}"


def _folder(root: Path, name: str) -> Path:
    for folder in (root / name, Path(name)):
        if folder.is_dir():
            return folder
    there = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = ", ".join(there) or "no folder"
    raise UserError(f"benchmark {name} was not found in {root}{did_you_mean(name, there)}; there is {found}")


def _check_sizes(hr: Path, lr: Path, scale: int) -> None:
    if image_size(hr) == image_size(lr):
        raise UserError(
            f"{lr} is as large as {hr} and should be {scale} times smaller; for RealSR, take version 3: in "
            "versions 1 and 2, LR images have the size of HR"
        )
    pair_sizes(hr, lr, scale=scale)


def _paired_folders(hr_folder: Path, lr_folder: Path) -> tuple[BenchmarkImage, ...]:
    return tuple(BenchmarkImage(hr.stem, lr, hr) for hr, lr in find_file_pairs(hr_folder, lr_folder))


def _marked_folders(hr_folder: Path, lr_folder: Path) -> tuple[BenchmarkImage, ...]:
    return _marked(list_images(hr_folder), list_images(lr_folder), where=f"{hr_folder} and {lr_folder}")


def _marked(hr_paths: Iterable[Path], lr_paths: Iterable[Path], *, where: str) -> tuple[BenchmarkImage, ...]:
    """Pair images whose names may end in `MARK`; the name of the pair is the name without it."""
    hr, lr = _by_name(hr_paths, MARK), _by_name(lr_paths, MARK)
    without_lr = {name: hr[name].name for name in hr.keys() - lr.keys()}
    without_hr = {name: lr[name].name for name in lr.keys() - hr.keys()}
    unpaired = sorted([*without_lr, *without_hr])
    if unpaired:
        raise UserError(
            f"the {len(hr)} HR and {len(lr)} LR images of {where} do not pair up by name: {len(unpaired)} have no "
            f"partner, such as {first_few(unpaired)}{near_pairs(without_lr, without_hr)}; the names of an HR image and "
            "its LR image are expected to differ only in _HR and _LR (or _x4 and _x1) at the end"
        )
    return tuple(BenchmarkImage(name, lr[name], hr[name]) for name in sorted(hr))


def _without_ground_truth(paths: Iterable[Path]) -> tuple[BenchmarkImage, ...]:
    return tuple(BenchmarkImage(name, path, None) for name, path in _by_name(paths, "").items())


def _photographs(folder: Path) -> list[Path]:
    """The images of a folder sorted by name, including those of other formats."""
    others = [path for path in folder.iterdir() if has_suffix(path.name, OTHER_SUFFIXES)]
    return sorted([*list_images(folder), *others])


def _by_name(paths: Iterable[Path], mark: str) -> dict[str, Path]:
    """Images by their stems without a match of `mark`. Raises UserError when two have the same name."""
    named = {}
    for path in paths:
        name = re.sub(mark, "", path.stem)
        if name in named:
            raise UserError(f"{named[name]} and {path} would both be written as one PNG; rename one of them")
        named[name] = path
    return named


if __name__ == "__main__":
    renamed_command("data.benchmarks prepare", "data.prepare.benchmark")
