"""Where sub-images lie in an image and what they are called, and the images that are cut by one grid.

HR and LR are cut so that sub-image n of HR and sub-image n of LR show the same, whatever the size of the image: HR
offsets are `scale` times the LR offsets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from sed_sr.data import images
from sed_sr.data.pair_content import check_aligned
from sed_sr.data.pairs import find_file_pairs, pair_sizes
from sed_sr.data.prepare.jobs import check_unique_names
from sed_sr.options.errors import UserError

FULL_SIZE = Fraction(1)
MAX_DENOMINATOR = 1000  # of a size; it is part of names


@dataclass(frozen=True)
class Grid:
    """The grid of sub-images; lengths in pixels."""

    crop_px: int
    step_px: int
    thresh_px: int  # what may stay uncovered at the right and at the bottom

    def offsets(self, length_px: int) -> list[int]:
        """Return where the sub-images start along a side.

        0, step, 2 step ... while they fit, and one flush with the end when more than `thresh_px` would stay uncovered.
        Empty when the side is shorter than a sub-image.
        """
        offsets = list(range(0, length_px - self.crop_px + 1, self.step_px))
        if offsets and length_px - (offsets[-1] + self.crop_px) > self.thresh_px:
            offsets.append(length_px - self.crop_px)
        return offsets

    def boxes(self, height_px: int, width_px: int) -> list[tuple[int, int]]:
        """Return (top, left) of every sub-image, row by row."""
        return [(top, left) for top in self.offsets(height_px) for left in self.offsets(width_px)]


@dataclass(frozen=True)
class Cut:
    """An image to cut, and the folder for its sub-images."""

    source: Path
    output: Path
    shrink: int = 1  # how many times smaller the image is than the one that the grid is laid on


class SubImage(NamedTuple):
    """One sub-image: the size at which its image is cut, its file, and its corner in pixels of the image at that size.

    The file of a packed sub-image does not exist; its name stands in the table of the pack.
    """

    size: Fraction
    path: Path
    top: int
    left: int


@dataclass(frozen=True)
class Job:
    """What is cut by one grid: an image, or an HR image and its LR image."""

    stem: str  # of the sub-images: 0001 -> 0001_s001.png
    cuts: tuple[Cut, ...]
    multiple_of: int  # the sides are rounded down to a multiple of this many pixels before the grid is laid on them
    sizes: tuple[Fraction, ...] = (FULL_SIZE,)  # at which the image is cut

    def boxes(self, grid: Grid, size: Fraction) -> list[tuple[int, int]]:
        """(top, left) of every sub-image at a size, on the first image. Raises UserError when it cannot be read."""
        sides = scaled_sides(images.image_size(self.cuts[0].source), size)
        return grid.boxes(*(side // self.multiple_of * self.multiple_of for side in sides))

    def fits(self, grid: Grid, size: Fraction) -> bool | None:
        """Whether the image has a sub-image at a size. None when it cannot be read, which is reported later by name."""
        try:
            return bool(self.boxes(grid, size))
        except UserError:
            return None

    def check(self, grid: Grid) -> None:
        """Raise UserError when the image is smaller than a sub-image in full size, or a pair does not fit by size."""
        source, *lr = (cut.source for cut in self.cuts)
        for lr_source in lr:
            pair_sizes(source, lr_source, scale=self.multiple_of)
        if FULL_SIZE in self.sizes and not self.boxes(grid, FULL_SIZE):
            height, width = images.image_size(source)
            raise UserError(f"{source} is {width}x{height}, smaller than a sub-image of {grid.crop_px}x{grid.crop_px}")

    def subimages(self, cut: Cut, grid: Grid) -> list[SubImage]:
        """The sub-images of a cut, size by size."""
        return [
            SubImage(size, cut.output / subimage_name(self.stem, number, size), top // cut.shrink, left // cut.shrink)
            for size in self.sizes
            for number, (top, left) in enumerate(self.boxes(grid, size), 1)
        ]


def single_jobs(source: Path, output: Path, *, scale: int, sizes: tuple[Fraction, ...] = (FULL_SIZE,)) -> list[Job]:
    """List the images of one folder, to be cut so that HR and LR folders cut one after the other stay aligned.

    An image whose stem or folder ends in a scale ("0001x4.png", "train_x4") is LR and cut as it is. Any other is HR:
    its sides are rounded down to a multiple of `scale`, so that it is cut where an LR image of floor(side / scale) is.

    Args:
        sizes: at which to cut each image, as fractions of its sides; for HR images only.

    Raises:
        UserError: the folder is missing or empty, or two images would share their sub-images' names, or an LR image
            would be cut at a reduced size.
    """
    paths = images.list_images(source)
    stems = {path: images.strip_scale_suffix(path.stem) for path in paths}
    check_unique_names({path: subimage_name(stem, 1, FULL_SIZE) for path, stem in stems.items()})
    lr_folder = images.has_scale_suffix(source.absolute().name)
    lr = {path for path in paths if lr_folder or images.has_scale_suffix(path.stem)}
    print(f"{source}: {len(paths) - len(lr)} HR and {len(lr)} LR images by their names")
    if lr and sizes != (FULL_SIZE,):
        raise UserError(f"--scales is for HR images, and {min(lr)} is LR by its name or its folder's")
    return [Job(stems[path], (Cut(path, output),), 1 if path in lr else scale, sizes) for path in paths]


def paired_jobs(hr: Path, hr_output: Path, *, lr: Path, lr_output: Path, scale: int) -> list[Job]:
    """List the HR images of a folder with their LR images, to be cut together by a grid in HR pixels.

    Raises:
        UserError: a folder is missing or empty, the images do not pair by name, or LR was resized from HR to rounded
            sides, so that it is not aligned.
    """
    pairs = find_file_pairs(hr, lr)
    check_aligned(pairs, hr_root=hr, lr_root=lr, scale=scale)
    return [
        Job(hr_path.stem, (Cut(hr_path, hr_output), Cut(lr_path, lr_output, shrink=scale)), multiple_of=scale)
        for hr_path, lr_path in pairs
    ]


def read_sizes(texts: Sequence[str]) -> tuple[Fraction, ...]:
    """Read --scales, the sizes at which to cut images, such as "0.75" and "1/3"; the largest comes first.

    Raises:
        UserError: one is not a number above 0 and up to 1, or finer than 1/1000, or two are the same.
    """
    sizes = []
    for text in texts:
        try:
            size = Fraction(text)
        except (ValueError, ZeroDivisionError):
            size = None
        if size is None or not 0 < size <= 1 or size.denominator > MAX_DENOMINATOR:
            raise UserError(
                f"--scales has {text!r}; numbers above 0 and up to 1 are expected, such as 0.75 or 1/3, with a "
                f"denominator of at most {MAX_DENOMINATOR}"
            )
        if size in sizes:
            raise UserError(f"--scales has {text!r}, which was given before; each size is expected once")
        sizes.append(size)
    return tuple(sorted(sizes, reverse=True))


def scaled_sides(full_px: tuple[int, int], size: Fraction) -> tuple[int, int]:
    """Height and width of an image at a size, rounded down."""
    height, width = full_px
    return int(height * size), int(width * size)


def subimage_name(stem: str, number: int, size: Fraction) -> str:
    """0001_s001.png in full size, which no name of another size and no LR name equals; else 0001_s001_scale1of3.png."""
    return f"{stem}_s{number:03d}{'' if size == FULL_SIZE else scale_suffix(size)}.png"


def scale_suffix(size: Fraction) -> str:
    """_scale1of3 for a third."""
    return f"_scale{size.numerator}of{size.denominator}"
