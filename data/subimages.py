"""Cutting large images into overlapping sub-images, which a training run reads far faster than the originals.

HR and LR are cut so that sub-image n of the one shows what sub-image n of the other shows, whatever the size of the
image: HR offsets are `scale` times the LR offsets.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data import image_jobs, images
from data.pairs import find_pairs, pair_sizes
from utils.errors import UserError
from utils.files import write_text

GRID_RECORD = ".grid"  # in the folder of sub-images: how they were cut
SUBIMAGE_NAME = r".+_s\d{3,}\.png"


@dataclass(frozen=True)
class Grid:
    """Where sub-images lie; lengths in pixels."""

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


@dataclass(frozen=True)
class Job:
    """What is cut by one grid: an image, or an HR image and its LR image."""

    stem: str  # of the sub-images: 0001 -> 0001_s001.png
    cuts: tuple[Cut, ...]
    multiple_of: int  # the grid is laid on the sides taken down to a multiple of this many pixels


def single_jobs(source: Path, output: Path, *, scale: int) -> list[Job]:
    """List the images of one folder, to be cut so that HR and LR folders cut one after the other stay aligned.

    An image whose stem or folder ends in a scale ("0001x4.png", "train_x4") is LR and cut as it is. Any other is HR:
    its sides are taken down to a multiple of `scale`, so that it is cut where an LR image of floor(side / scale) is.

    Raises:
        UserError: the folder is missing or empty, or two images would share their sub-images' names.
    """
    paths = images.list_images(source)
    stems = {path: images.strip_scale_suffix(path.stem) for path in paths}
    image_jobs.refuse_collisions({path: f"{stem}_s001.png" for path, stem in stems.items()})
    lr_folder = images.has_scale_suffix(source.absolute().name)
    lr = {path for path in paths if lr_folder or images.has_scale_suffix(path.stem)}
    print(f"{source}: {len(paths) - len(lr)} HR and {len(lr)} LR images by their names")
    return [Job(stems[path], (Cut(path, output),), multiple_of=1 if path in lr else scale) for path in paths]


def paired_jobs(hr: Path, hr_output: Path, *, lr: Path, lr_output: Path, scale: int) -> list[Job]:
    """List the HR images of a folder with their LR images, to be cut together by a grid in HR pixels.

    Raises:
        UserError: a folder is missing or empty, or the images do not pair by name.
    """
    return [
        Job(hr_path.stem, (Cut(hr_path, hr_output), Cut(lr_path, lr_output, shrink=scale)), multiple_of=scale)
        for hr_path, lr_path in find_pairs(hr, lr)
    ]


def extract(
    jobs: Sequence[Job], grid: Grid, *, compression_level: int, workers: int, overwrite: bool, resume: bool
) -> int:
    """Cut every job's images into sub-images 0001_s001.png ..., numbered row by row, pixels as stored.

    Returns:
        The exit code: 1 when some images are unreadable, too small or no pair by size (they are named on stderr and the
        others are cut), else 0.

    Raises:
        UserError: the grid or an output folder cannot be used (before any work), or an output cannot be written.
    """
    multiple_of = max(job.multiple_of for job in jobs)
    _check_grid(grid, multiple_of=multiple_of)
    _check_some_fit(jobs, grid)
    cuts = jobs[0].cuts  # every job has the same folders
    outputs = [cut.output for cut in cuts]
    records = {
        cut.output: f"crop_size {grid.crop_px // cut.shrink}, step {grid.step_px // cut.shrink}, "
        f"thresh_size {grid.thresh_px / cut.shrink:g}, at multiples of {multiple_of // cut.shrink}\n"
        for cut in cuts
    }
    if resume:
        for output, settings in records.items():
            _check_earlier_grid(output, settings)
    image_jobs.prepare_outputs(
        outputs,
        inputs=[cut.source.parent for cut in cuts],
        pattern=SUBIMAGE_NAME,
        overwrite=overwrite,
        resume=resume,
    )
    for output, settings in records.items():
        write_text(output / GRID_RECORD, settings)
    work = functools.partial(cut_images, grid=grid, compression_level=compression_level, resume=resume)
    return image_jobs.run(work, jobs, workers=workers, made=f"sub-images in {' and '.join(map(str, outputs))}")


def cut_images(job: Job, *, grid: Grid, compression_level: int, resume: bool) -> int:
    """Write the sub-images of one job and return how many; with `resume`, those that do not exist yet.

    Raises:
        UserError: an image is unreadable or smaller than a sub-image, or the sizes of a pair do not belong together;
            nothing has been written then.
        WriteError: a sub-image cannot be written.
    """
    source, *lr = (cut.source for cut in job.cuts)
    for lr_source in lr:
        pair_sizes(source, lr_source, scale=job.multiple_of)
    boxes = _boxes(job, grid)
    if not boxes:
        height, width = images.image_size(source)
        raise UserError(f"{source} is {width}x{height}, smaller than a sub-image of {grid.crop_px}x{grid.crop_px}")

    # Every image is decoded before anything is written: sub-images without their LR would pair with nothing.
    to_write = []
    for cut in job.cuts:
        targets = ((cut.output / f"{job.stem}_s{number:03d}.png", box) for number, box in enumerate(boxes, 1))
        missing = [(target, box) for target, box in targets if not (resume and target.exists())]
        if missing:
            to_write.append((cut, images.read_unchanged(cut.source), missing))
    for cut, image, missing in to_write:
        crop_px = grid.crop_px // cut.shrink
        for target, box in missing:
            top, left = (offset // cut.shrink for offset in box)
            subimage = image[top : top + crop_px, left : left + crop_px]
            images.write_unchanged(target, subimage, compression_level=compression_level)
    return sum(len(missing) for _, _, missing in to_write)


def _check_grid(grid: Grid, *, multiple_of: int) -> None:
    if grid.crop_px < 1 or grid.step_px < 1 or grid.thresh_px < 0:
        raise UserError(
            f"crop_size {grid.crop_px}, step {grid.step_px} and thresh_size {grid.thresh_px} cannot be used; "
            "at least 1, 1 and 0 pixels are expected"
        )
    if grid.crop_px % multiple_of or grid.step_px % multiple_of:
        raise UserError(
            f"crop_size {grid.crop_px} and step {grid.step_px} must be multiples of the scale {multiple_of} for HR; "
            "otherwise LR sub-images would not lie where HR sub-images do"
        )


def _check_some_fit(jobs: Sequence[Job], grid: Grid) -> None:
    # Before anything of an earlier cut is removed for this one. Headers that cannot be read are told later, by name.
    for job in jobs:
        try:
            if _boxes(job, grid):
                return
        except UserError:
            continue
    raise UserError(
        f"no image in {jobs[0].cuts[0].source.parent} is as large as a sub-image of {grid.crop_px}x{grid.crop_px}; "
        "give another --crop_size (and --step)"
    )


def _boxes(job: Job, grid: Grid) -> list[tuple[int, int]]:
    sides = images.image_size(job.cuts[0].source)
    return grid.boxes(*(side // job.multiple_of * job.multiple_of for side in sides))


def _check_earlier_grid(output: Path, settings: str) -> None:
    # The names of sub-images say nothing of the grid, and two grids mixed would pair what does not belong together.
    record = output / GRID_RECORD
    earlier = record.read_text() if record.exists() else None
    if earlier is not None and earlier != settings:
        raise UserError(
            f"{output} was cut with {earlier.strip()}, not {settings.strip()}; resume with the settings of that run, "
            "or give --overwrite"
        )
