"""Pairs of HR and LR images: paired by name, never by order, and checked for size before use."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sed_sr.data.image_folders import (
    ImageFolder,
    check_each,
    decode_names,
    find_images,
    find_marked,
    first_few,
    image_folder,
    size_of,
)
from sed_sr.data.images import list_image_names, strip_scale_suffix
from sed_sr.data.pack import Pack, Tile
from sed_sr.options.errors import UserError

UNICODE = "in Unicode normal form (NFC and NFD look the same)"
# Differences between the names of HR and LR images that are often mistakes, and how to remove them.
DIFFERENCES = {
    "in upper and lower case": str.casefold,
    UNICODE: functools.partial(unicodedata.normalize, "NFC"),
    "in endings such as _HR, _LR and _x4": lambda stem: re.sub(r"(?<=.)_((HR|LR)\d?)?$", "", stem, flags=re.IGNORECASE),
}


@dataclass(frozen=True)
class Pairs:
    """(HR image, LR image) pairs sorted by HR name, as a sequence."""

    hr: ImageFolder | Pack
    lr: ImageFolder | Pack  # partner of each HR image, in the same order

    def __len__(self) -> int:
        return len(self.hr)

    def __getitem__(self, index: int) -> tuple[Path | Tile, Path | Tile]:
        return self.hr[index], self.lr[index]

    def __str__(self) -> str:
        return f"pairs of {self.hr.root} and {self.lr.root}"


def find_pairs(hr_root: Path, lr_root: Path) -> Pairs:
    """Pair the images of two folders, or the sub-images of two packs, by stem.

    An LR image has the stem of its HR image, with or without the scale at the end (0001 or 0001x4).

    Raises:
        UserError: a folder is missing or empty, an image has no partner, or two images of a folder share a stem.
    """
    hr_images, lr_images = find_images(hr_root), find_images(lr_root)
    hr_names, lr_names = _pair_names(hr_images, lr_images)
    return Pairs(hr_images.select(hr_names), lr_images.select(lr_names))


def find_file_pairs(hr_root: Path, lr_root: Path) -> list[tuple[Path, Path]]:
    """Pair the image files of two folders as `find_pairs` does. Packs are not accepted."""
    hr_images, lr_images = (image_folder(root, list_image_names(root)) for root in (hr_root, lr_root))
    hr_names, lr_names = _pair_names(hr_images, lr_images)
    return [(hr_images.root / hr, lr_images.root / lr) for hr, lr in zip(hr_names, lr_names, strict=True)]


def _pair_names(hr_images: ImageFolder | Pack, lr_images: ImageFolder | Pack) -> tuple[list[str], list[str]]:
    """The names of the HR images and of their partners."""
    hr, lr = _by_stem(hr_images, _stem), _by_stem(lr_images, _stem)
    if hr.keys() != lr.keys():  # Only now, because the name of an HR image may end like a scale ("box4").
        lr = _by_stem(lr_images, lambda name: strip_scale_suffix(_stem(name)))

    without_lr = {stem: hr[stem] for stem in hr.keys() - lr.keys()}
    without_hr = {stem: lr[stem] for stem in lr.keys() - hr.keys()}
    if without_lr or without_hr:
        problems = [
            f"{len(names)} of {total} images in {folder} lack an {other} image ({first_few(sorted(names.values()))})"
            for names, total, folder, other in (
                (without_lr, len(hr), hr_images.root, "LR"),
                (without_hr, len(lr), lr_images.root, "HR"),
            )
            if names
        ]
        raise UserError(
            f"HR and LR images do not pair by name: {' and '.join(problems)}{near_pairs(without_lr, without_hr)}; "
            "an LR image is expected to have the name of its HR image, with or without the scale at the end (0001.png "
            "or 0001x4.png for 0001.png)"
        )
    return list(hr.values()), [lr[stem] for stem in hr]


def near_pairs(hr: Mapping[str, str], lr: Mapping[str, str]) -> str:
    """Describe how the names of images without a partner differ, as a hint for an error message.

    Args:
        hr, lr: file names by the keys by which they are paired.

    Returns:
        `; 2 of the names differ only in upper and lower case (Baby.png and baby.png)`, with the fewest kinds of
        difference that explain the most names; empty when no names become equal.
    """

    def pairs(kinds: Iterable[str]) -> list[tuple[str, str]]:
        def plain(names: Mapping[str, str]) -> dict[str, str]:
            return {
                functools.reduce(lambda stem, kind: DIFFERENCES[kind](stem), kinds, key): names[key] for key in names
            }

        plain_hr, plain_lr = plain(hr), plain(lr)
        return [(plain_hr[stem], plain_lr[stem]) for stem in sorted(plain_hr.keys() & plain_lr.keys())]

    choices = [
        kinds for count in range(1, 1 + len(DIFFERENCES)) for kinds in itertools.combinations(DIFFERENCES, count)
    ]
    kinds = max(choices, key=lambda kinds: len(pairs(kinds)))  # the first maximum
    found = pairs(kinds)
    if not found:
        return ""
    count = "" if len(found) == len(hr) == len(lr) else f"{len(found)} of "
    example = " and ".join(ascii(name) if UNICODE in kinds else name for name in found[0])
    return f"; {count}the names differ only {' and '.join(kinds)} ({example})"


def check_pairs(pairs: Pairs, *, scale: int, lr_patch_px: int) -> None:
    """Check from the headers that the sizes of every pair fit each other and the training patch.

    An LR side must be HR side / scale, rounded down or up, and at least `lr_patch_px` when rounded down.
    Whether a pair of rounded sides is aligned, its content tells (`data.pair_content`).

    Raises:
        UserError: some pairs do not fit, or a header cannot be read; gives their number and the first few.
    """

    def misfit(indices: range) -> np.ndarray:
        hr, lr = pairs.hr.sizes(indices), pairs.lr.sizes(indices)
        return ~(_fit(hr, lr, scale=scale) & (hr // scale >= lr_patch_px).all(axis=1))

    candidates = [pairs[index] for index in find_marked(misfit, len(pairs))]
    find_problem = functools.partial(_find_problem, scale=scale, lr_patch_px=lr_patch_px)
    check_each([candidates], find_problem, what=f"{len(pairs)} {pairs}", fault="cannot be used")


def pair_sizes(hr_path: Path | Tile, lr_path: Path | Tile, *, scale: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the (height, width) of an HR image and of its LR image, read from their headers.

    Raises:
        UserError: an LR side is neither floor nor ceil of HR / scale, or a header cannot be read.
    """
    hr_size, lr_size = size_of(hr_path), size_of(lr_path)
    if not _fit(np.array(hr_size), np.array(lr_size), scale=scale):
        raise UserError(
            f"{lr_path} is {lr_size[1]}x{lr_size[0]}, and {hr_path} is {hr_size[1]}x{hr_size[0]}, "
            f"so {hr_size[1] // scale}x{hr_size[0] // scale} is expected at scale {scale}"
        )
    return hr_size, lr_size


def _fit(hr_sides: np.ndarray, lr_sides: np.ndarray, *, scale: int) -> np.ndarray:
    """Whether both sides of LR are HR / scale, rounded down or up: (..., 2) -> (...)."""
    return np.all((lr_sides == hr_sides // scale) | (lr_sides == -(-hr_sides // scale)), axis=-1)


def _find_problem(pair: tuple[Path | Tile, Path | Tile], *, scale: int, lr_patch_px: int) -> str | None:
    hr_path, lr_path = pair
    try:
        hr_size, lr_size = pair_sizes(hr_path, lr_path, scale=scale)
    except UserError as error:
        return str(error)
    if min(hr_size) // scale < lr_patch_px:
        return f"{lr_path} is {lr_size[1]}x{lr_size[0]}, smaller than the LR patch of {lr_patch_px}"
    return None


def _by_stem(images: ImageFolder | Pack, stem: Callable[[str], str]) -> dict[str, str]:
    names = decode_names(images.names)
    by_stem = {stem(name): name for name in names}
    if len(by_stem) < len(names):
        one = next(name for name in names if by_stem[stem(name)] != name)
        raise UserError(
            f"{one} and {by_stem[stem(one)]} in {images.root} have the same name without the ending; remove one of them"
        )
    return by_stem


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
