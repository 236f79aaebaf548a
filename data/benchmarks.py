"""Benchmarks on disk: which LR image belongs to which HR image, in the layouts that are found in the wild.

Set5/GTmod12/baby.png                Set5/LRbicx4/baby.png                     (SwinIR, BasicSR)
Set5/HR/baby.png                     Set5/LR_bicubic/X4/babyx4.png             (EDSR)
DIV2K/DIV2K_valid_HR/0801.png        DIV2K/DIV2K_valid_LR_bicubic/X4/0801x4.png
Set5/image_SRF_4/img_001_SRF_4_HR.png beside img_001_SRF_4_LR.png              (SelfExSR)
photos/a.png                         LR images alone: nothing to score, only to upscale
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from data.images import list_images
from data.pairs import find_pairs, pair_sizes
from utils.errors import UserError


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
    stems = [path.stem for path in paths]
    twice = [path.name for path in paths if stems.count(path.stem) > 1]
    if twice:
        raise UserError(f"{' and '.join(twice[:2])} in {folder} would both be written as one PNG; rename one of them")
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
    return tuple(BenchmarkImage(path.stem, path, None) for path in paths)
