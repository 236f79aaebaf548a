"""Which LR image belongs to which HR image: paired by name, never by order, and checked for size before use."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from data.image_folders import ImageFolder, check_each, first_few, image_folder
from data.images import image_size, list_image_names, strip_scale_suffix
from utils.errors import UserError


@dataclass(frozen=True)
class Pairs:
    """(HR path, LR path) pairs sorted by HR name, as a sequence."""

    hr: ImageFolder
    lr: ImageFolder  # partners of the HR images, in their order

    def __len__(self) -> int:
        return len(self.hr)

    def __getitem__(self, index: int) -> tuple[Path, Path]:
        return self.hr[index], self.lr[index]

    def __str__(self) -> str:
        return f"pairs of {self.hr.root} and {self.lr.root}"


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
    return Pairs(image_folder(hr_root, hr.values()), image_folder(lr_root, (lr[stem] for stem in hr)))


def check_pairs(pairs: Pairs, *, scale: int, lr_patch_px: int) -> None:
    """Check from the headers that the sizes of every pair fit each other and the training patch.

    An LR side must be floor or ceil of the HR side / scale, and floor of it at least `lr_patch_px` long.

    Raises:
        UserError: some pairs do not fit, or a header cannot be read; says how many and shows the first.
    """
    complaint = functools.partial(_complaint, scale=scale, lr_patch_px=lr_patch_px)
    check_each([pairs], complaint, what=str(pairs), fault="cannot be used")


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


def _complaint(pair: tuple[Path, Path], *, scale: int, lr_patch_px: int) -> str | None:
    hr_path, lr_path = pair
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
