"""Which LR image belongs to which HR image: paired by name, never by order, and checked for size before use."""

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from data.images import image_size, list_image_names, strip_scale_suffix
from utils.errors import UserError

OFFENDERS_SHOWN = 5
READERS = 16  # threads; a network file system answers many of them at once
TASKS = 10_000  # at most: a task for every pair of a large set would take more memory than its names


@dataclass(frozen=True)
class Pairs:
    """(HR path, LR path) pairs sorted by HR name, as a sequence.

    Names are kept as fixed-width byte strings: 800,000 pairs take some 25 MB, and the workers of a data loader share
    these pages, which a list of Python objects would have them copy one by one.
    """

    hr_root: Path
    lr_root: Path
    hr_names: np.ndarray  # (pairs,) bytes
    lr_names: np.ndarray  # (pairs,) bytes

    def __len__(self) -> int:
        return len(self.hr_names)

    def __getitem__(self, index: int) -> tuple[Path, Path]:
        hr_name, lr_name = os.fsdecode(self.hr_names[index]), os.fsdecode(self.lr_names[index])
        return self.hr_root / hr_name, self.lr_root / lr_name


def find_pairs(hr_root: Path, lr_root: Path) -> Pairs:
    """Pair the images of two folders by stem.

    The LR folder names its images as the HR folder does, or with the scale at the end of the stem (0001x4).

    Raises:
        UserError: a folder is missing or empty, an image has no partner, or two images of a folder share a stem.
    """
    hr_root, lr_root = Path(hr_root), Path(lr_root)
    hr = {}
    for name in list_image_names(hr_root):
        _add(hr, os.path.splitext(name)[0], name, folder=hr_root)
    lr = {}
    lr_names = list_image_names(lr_root)
    # An HR image may itself be called "box4": only when the names differ can the ending be a scale.
    same_names = hr.keys() == {os.path.splitext(name)[0] for name in lr_names}
    for name in lr_names:
        stem = os.path.splitext(name)[0]
        _add(lr, stem if same_names else strip_scale_suffix(stem), name, folder=lr_root)

    without_lr = sorted(hr[stem] for stem in hr.keys() - lr.keys())
    without_hr = sorted(lr[stem] for stem in lr.keys() - hr.keys())
    if without_lr or without_hr:
        problems = [
            f"{len(names)} of {total} images in {folder} lack an {other} image ({first_few(names)})"
            for names, total, folder, other in (
                (without_lr, len(hr), hr_root, "LR"),
                (without_hr, len(lr), lr_root, "HR"),
            )
            if names
        ]
        raise UserError(f"HR and LR images do not pair by name: {' and '.join(problems)}")
    return Pairs(hr_root, lr_root, _pack(hr.values()), _pack(lr[stem] for stem in hr))


def check_pairs(pairs: Pairs, *, scale: int, lr_patch_px: int) -> None:
    """Check from the headers that the sizes of every pair fit each other and the training patch.

    An LR side must be floor or ceil of the HR side / scale, and floor of it at least `lr_patch_px` long.

    Raises:
        UserError: some pairs do not fit, or a header cannot be read; says how many and shows the first.
    """
    check_each(pairs, functools.partial(_complaint, scale=scale, lr_patch_px=lr_patch_px), fault="cannot be used")


def check_each(pairs: Pairs, complaint: Callable[[Path, Path], str | None], *, fault: str) -> None:
    """Ask `complaint` about every pair, in threads: what is wrong with an HR and an LR image, or None.

    Raises:
        UserError: there were complaints; says how many pairs have this `fault` and shows the first complaints.
    """

    def complaints(start: int) -> list[str]:
        found = (complaint(*pairs[index]) for index in range(start, min(start + pairs_per_task, len(pairs))))
        return [text for text in found if text]

    pairs_per_task = -(-len(pairs) // TASKS)
    with ThreadPoolExecutor(READERS) as executor:
        offenders = list(chain.from_iterable(executor.map(complaints, range(0, len(pairs), pairs_per_task))))
    if offenders:
        raise UserError(
            f"{len(offenders)} of {len(pairs)} pairs of {pairs.hr_root} and {pairs.lr_root} {fault}: "
            f"{first_few(offenders, separator='; ')}"
        )


def pair_sizes(hr_path: Path, lr_path: Path, *, scale: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the (height, width) of an HR image and of its LR image, read from their headers.

    Raises:
        UserError: an LR side is neither floor nor ceil of HR / scale, or a header cannot be read.
    """
    hr_size, lr_size = image_size(hr_path), image_size(lr_path)
    if any(lr not in (hr // scale, -(-hr // scale)) for hr, lr in zip(hr_size, lr_size, strict=True)):
        raise UserError(
            f"{lr_path.name} is {lr_size[1]}x{lr_size[0]}, but {hr_path.name} is {hr_size[1]}x{hr_size[0]} "
            f"and calls for {hr_size[1] // scale}x{hr_size[0] // scale} at scale {scale}"
        )
    return hr_size, lr_size


def first_few(offenders: list[str], *, separator: str = ", ") -> str:
    """Join the first few offenders, and say by an ellipsis that there are more."""
    shown = separator.join(offenders[:OFFENDERS_SHOWN])
    return shown if len(offenders) <= OFFENDERS_SHOWN else f"{shown}{separator}..."


def _complaint(hr_path: Path, lr_path: Path, *, scale: int, lr_patch_px: int) -> str | None:
    try:
        hr_size, lr_size = pair_sizes(hr_path, lr_path, scale=scale)
    except UserError as error:
        return str(error)
    if min(hr_size) // scale < lr_patch_px:
        return f"{lr_path.name} is {lr_size[1]}x{lr_size[0]}, smaller than the LR patch of {lr_patch_px}"
    return None


def _add(names: dict[str, str], stem: str, name: str, *, folder: Path) -> None:
    if stem in names:
        raise UserError(f"{names[stem]} and {name} in {folder} are one image by name; remove one of them")
    names[stem] = name


def _pack(names: Iterable[str]) -> np.ndarray:
    return np.array([os.fsencode(name) for name in names])
