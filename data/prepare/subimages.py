"""Cutting large images into overlapping sub-images, which a training run reads far faster than the originals.

HR and LR are cut so that sub-image n of the one shows what sub-image n of the other shows, whatever the size of the
image: HR offsets are `scale` times the LR offsets.

HR images that need no LR can be cut at reduced sizes too, where a sub-image shows more of the scene: the multi-scale
copies that Real-ESRGAN is trained on.
"""

import collections
import functools
import itertools
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from sed_sr.data import images, pack
from sed_sr.data.files import nearest_existing, write_text
from sed_sr.data.pairs import find_pairs, pair_sizes
from sed_sr.data.prepare import image_jobs
from sed_sr.options.errors import UserError

GRID_RECORD = ".grid"  # in the folder of sub-images: how they were cut
WRITTEN_NAME = rf".+_s\d{{3,}}(_scale\d+of\d+)?\.png|{pack.FILE_NAME}"
FULL_SIZE = Fraction(1)
FINEST_SIZE = 1000  # largest denominator, which stands in names


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
    sizes: tuple[Fraction, ...] = (FULL_SIZE,)  # at which the image is cut


def read_sizes(texts: Sequence[str]) -> tuple[Fraction, ...]:
    """Read --scales, the sizes at which to cut images, such as "0.75" and "1/3"; returns them from the largest on.

    Raises:
        UserError: one is no number above 0 and up to 1, or finer than 1/1000, or two are the same.
    """
    sizes = []
    for text in texts:
        try:
            size = Fraction(text)
        except (ValueError, ZeroDivisionError):
            size = None
        if size is None or not 0 < size <= 1 or size.denominator > FINEST_SIZE:
            raise UserError(
                f"--scales holds {text!r}; numbers above 0 and up to 1 are expected, such as 0.75 or 1/3, and no "
                f"fractions of more than {FINEST_SIZE} parts"
            )
        if size in sizes:
            raise UserError(f"--scales holds {text!r}, which was given before; each size is expected once")
        sizes.append(size)
    return tuple(sorted(sizes, reverse=True))


def single_jobs(source: Path, output: Path, *, scale: int, sizes: tuple[Fraction, ...] = (FULL_SIZE,)) -> list[Job]:
    """List the images of one folder, to be cut so that HR and LR folders cut one after the other stay aligned.

    An image whose stem or folder ends in a scale ("0001x4.png", "train_x4") is LR and cut as it is. Any other is HR:
    its sides are taken down to a multiple of `scale`, so that it is cut where an LR image of floor(side / scale) is.

    Args:
        sizes: at which to cut each image, as parts of its sides; of HR images alone.

    Raises:
        UserError: the folder is missing or empty, or two images would share their sub-images' names, or an LR image
            would be cut at a reduced size.
    """
    paths = images.list_images(source)
    stems = {path: images.strip_scale_suffix(path.stem) for path in paths}
    image_jobs.refuse_collisions({path: f"{stem}_s001.png" for path, stem in stems.items()})
    lr_folder = images.has_scale_suffix(source.absolute().name)
    lr = {path for path in paths if lr_folder or images.has_scale_suffix(path.stem)}
    print(f"{source}: {len(paths) - len(lr)} HR and {len(lr)} LR images by their names")
    if lr and sizes != (FULL_SIZE,):
        raise UserError(f"--scales is for HR images, and {min(lr)} is LR by its name or its folder's")
    return [Job(stems[path], (Cut(path, output),), 1 if path in lr else scale, sizes) for path in paths]


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
    jobs: Sequence[Job],
    grid: Grid,
    *,
    compression_level: int,
    workers: int,
    overwrite: bool,
    resume: bool,
    packed: bool = False,
) -> int:
    """Cut every job's images into sub-images 0001_s001.png ..., numbered row by row, pixels as stored.

    Those of reduced sizes are called 0001_s001_scale1of3.png, as none of full size and none of LR is. An image that is
    smaller than a sub-image at a reduced size is not cut at that size.

    Args:
        packed: make a pack (`data.pack`) of each output folder, of the sub-images that the files would hold.

    Returns:
        The exit code: 1 when some images are unreadable, too small or no pair by size (they are named on stderr and the
        others are cut), else 0.

    Raises:
        UserError: the grid or an output folder cannot be used (before any work), or an output cannot be written.
    """
    multiple_of = max(job.multiple_of for job in jobs)
    _check_grid(grid, multiple_of=multiple_of)
    _check_some_fit(jobs, grid)
    cuts, sizes = jobs[0].cuts, jobs[0].sizes  # every job has the same folders and sizes
    outputs = [cut.output for cut in cuts]
    at_sizes = "" if sizes == (FULL_SIZE,) else f", at scales {' '.join(map(str, sizes))}"
    in_a_pack = ", packed" if packed else ""
    records = {
        cut.output: f"crop_size {grid.crop_px // cut.shrink}, step {grid.step_px // cut.shrink}, "
        f"thresh_size {grid.thresh_px / cut.shrink:g}, at multiples of {multiple_of // cut.shrink}{at_sizes}"
        f"{in_a_pack}\n"
        for cut in cuts
    }
    if resume:
        for output, settings in records.items():
            _check_earlier_grid(output, settings)
    if packed:
        _check_free_disk(jobs, grid, overwrite=overwrite, resume=resume)
    image_jobs.prepare_outputs(
        outputs,
        inputs=[cut.source.parent for cut in cuts],
        pattern=WRITTEN_NAME,
        overwrite=overwrite,
        resume=resume,
    )
    for output, settings in records.items():
        write_text(output / GRID_RECORD, settings)
    _tell_what_is_left_out(jobs, grid)
    where = " and ".join(map(str, outputs))
    if not packed:
        work = functools.partial(cut_images, grid=grid, compression_level=compression_level, resume=resume)
        return image_jobs.run(
            work,
            jobs,
            workers=workers,
            made=f"sub-images in {where}",
            outputs=outputs,
            remove_damaged_of=functools.partial(remove_damaged_subimages, grid=grid),
        )
    for output in outputs:
        pack.write_table(output, [])
    work = functools.partial(pack_images, grid=grid, resume=resume)
    exit_code = image_jobs.run(
        work,
        jobs,
        workers=workers,
        made=f"images in {where}",
        outputs=outputs,
        remove_damaged_of=remove_damaged_pixels,
    )
    for place, output in enumerate(outputs):
        pack.write_table(output, _tiles(jobs, grid, place))
    return exit_code


def cut_images(job: Job, *, grid: Grid, compression_level: int, resume: bool) -> int:
    """Write the sub-images of one job and return how many; with `resume`, those that do not exist yet.

    Raises:
        UserError: an image is unreadable or, in full size, smaller than a sub-image, or the sizes of a pair do not
            belong together; nothing has been written then.
        WriteError: a sub-image cannot be written.
    """
    boxes = _checked_boxes(job, grid)
    # Every image is decoded before anything is written: sub-images without their LR would pair with nothing.
    to_write = []
    for cut in job.cuts:
        missing = [target for target in _targets(job, cut, boxes) if not (resume and target[1].exists())]
        if missing:
            to_write.append((cut, images.read_unchanged(cut.source), missing))
    for cut, image, missing in to_write:
        crop_px = grid.crop_px // cut.shrink
        for size, of_size in itertools.groupby(missing, key=lambda target: target[0]):
            copy = _at_size(image, size)
            for _, target, box in of_size:
                top, left = (offset // cut.shrink for offset in box)
                subimage = copy[top : top + crop_px, left : left + crop_px]
                images.write_unchanged(target, subimage, compression_level=compression_level, durable=False)
    return sum(len(missing) for _, _, missing in to_write)


def remove_damaged_subimages(job: Job, *, grid: Grid) -> int:
    """Remove those sub-images of one job that an earlier run left damaged; return how many.

    Raises:
        UserError: an image is unreadable, as of `cut_images`; nothing has been removed then.
    """
    boxes = _checked_boxes(job, grid)
    paths = (path for cut in job.cuts for _, path, _ in _targets(job, cut, boxes))
    return image_jobs.remove_damaged(paths, is_whole=images.is_whole_png)


def pack_images(job: Job, *, grid: Grid, resume: bool) -> int:
    """Write the pixels of the images of one job, at every size that is cut, and return how many files; with `resume`,
    those that do not exist yet.

    Raises:
        UserError, WriteError: as `cut_images`.
    """
    boxes = _checked_boxes(job, grid)
    to_write = []
    for cut in job.cuts:
        missing = [
            (size, target)
            for size, target in _packed_files(job, cut).items()
            if boxes[size] and not (resume and target.exists())
        ]
        if missing:
            image = images.read_unchanged(cut.source)
            to_write += [(target, images.as_rgb(_at_size(image, size), cut.source)) for size, target in missing]
    for target, rgb in to_write:
        pack.write_pixels(target, rgb)
    return len(to_write)


def remove_damaged_pixels(job: Job) -> int:
    """Remove those files of one job in a pack that an earlier run left damaged; return how many."""
    paths = (path for cut in job.cuts for path in _packed_files(job, cut).values())
    return image_jobs.remove_damaged(paths, is_whole=pack.is_whole)


def lanczos(image: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """Shrink an image by Pillow's Lanczos filter, as the multi-scale copies of Real-ESRGAN are made.

    Args:
        image: (H, W) or (H, W, C), 8 or 16 bits. Each channel is shrunk by itself, colour below alpha too: a training
            set drops alpha and takes the colour as it is.

    Returns:
        (height_px, width_px) or (height_px, width_px, C) of the same depth.
    """
    channels = [_lanczos_channel(channel, height_px, width_px) for channel in np.moveaxis(np.atleast_3d(image), 2, 0)]
    return channels[0] if image.ndim == 2 else np.stack(channels, axis=-1)


def _lanczos_channel(channel: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    # Not every release of Pillow filters 16-bit integers. Other depths than 8 and 16 bits are refused when written.
    values = channel if channel.dtype == np.uint8 else channel.astype(np.float32)
    shrunk = np.asarray(Image.fromarray(values).resize((width_px, height_px), Image.Resampling.LANCZOS))
    return shrunk.round().clip(0, 65535).astype(np.uint16) if channel.dtype == np.uint16 else shrunk


def _at_size(image: np.ndarray, size: Fraction) -> np.ndarray:
    return image if size == FULL_SIZE else lanczos(image, *_sides(image.shape[:2], size))


def _targets(
    job: Job, cut: Cut, boxes: dict[Fraction, list[tuple[int, int]]]
) -> list[tuple[Fraction, Path, tuple[int, int]]]:
    """(size, path, box) of every sub-image of a cut, size by size."""
    return [
        (size, cut.output / _name(job.stem, number, size), box)
        for size in job.sizes
        for number, box in enumerate(boxes[size], 1)
    ]


def _packed_files(job: Job, cut: Cut) -> dict[Fraction, Path]:
    # With the size in every name: another image may be called "a_scale1of2".
    return {size: cut.output / f"{job.stem}{_scale_suffix(size)}.npy" for size in job.sizes}


def _tiles(jobs: Sequence[Job], grid: Grid, place: int) -> Iterator[tuple[str, str, int, int, int]]:
    """The rows of the table of the output that the cuts at `place` have; without images that failed, or whose pair."""
    for job in jobs:
        cut = job.cuts[place]
        files = [_packed_files(job, other) for other in job.cuts]
        for size in job.sizes:
            if all(file[size].exists() for file in files):
                for number, box in enumerate(_boxes(job, grid, size), 1):
                    top, left = (offset // cut.shrink for offset in box)
                    yield _name(job.stem, number, size), files[place][size].name, top, left, grid.crop_px // cut.shrink


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
    # Before anything of an earlier cut is removed for this one.
    largest = jobs[0].sizes[0]
    if not any(_fits(job, grid, largest) for job in jobs):
        at_size = "" if largest == FULL_SIZE else f" at scale {largest}"
        raise UserError(
            f"no image in {jobs[0].cuts[0].source.parent} is{at_size} as large as a sub-image of "
            f"{grid.crop_px}x{grid.crop_px}; give another --crop_size (and --step)"
        )


def _check_free_disk(jobs: Sequence[Job], grid: Grid, *, overwrite: bool, resume: bool) -> None:
    # Packs are not compressed: what they will take is known.
    outputs = [cut.output for cut in jobs[0].cuts]
    needed_bytes, free_bytes = collections.Counter(), {}
    for place, output in enumerate(outputs):
        ground = nearest_existing(output)
        disk = ground.stat().st_dev
        free_bytes[disk] = shutil.disk_usage(ground).free
        needed_bytes[disk] += sum(_packed_bytes(job, grid, place, resume=resume) for job in jobs)
        if overwrite:
            needed_bytes[disk] -= image_jobs.written_bytes(output, WRITTEN_NAME)
    for disk, needed in needed_bytes.items():
        if needed > free_bytes[disk]:
            raise UserError(
                f"{' and '.join(map(str, outputs))} would grow by {needed / 1e9:.3g} GB, but "
                f"{free_bytes[disk] / 1e9:.3g} GB are free there"
            )


def _packed_bytes(job: Job, grid: Grid, place: int, *, resume: bool) -> int:
    cut = job.cuts[place]
    files = _packed_files(job, cut)
    sizes = [size for size in job.sizes if _fits(job, grid, size) and not (resume and files[size].exists())]
    try:
        return sum(3 * math.prod(_sides(images.image_size(cut.source), size)) for size in sizes)
    except UserError:  # a header that cannot be read is told later, by name
        return 0


def _tell_what_is_left_out(jobs: Sequence[Job], grid: Grid) -> None:
    for size in jobs[0].sizes:
        if size == FULL_SIZE:
            continue  # too small an image is then a failure, told by name
        small = sum(_fits(job, grid, size) is False for job in jobs)
        if small:
            print(f"at scale {size}, {small} of {len(jobs)} images are smaller than a sub-image and left out")


def _fits(job: Job, grid: Grid, size: Fraction) -> bool | None:
    try:
        return bool(_boxes(job, grid, size))
    except UserError:  # a header that cannot be read is told later, by name
        return None


def _checked_boxes(job: Job, grid: Grid) -> dict[Fraction, list[tuple[int, int]]]:
    source, *lr = (cut.source for cut in job.cuts)
    for lr_source in lr:
        pair_sizes(source, lr_source, scale=job.multiple_of)
    boxes = {size: _boxes(job, grid, size) for size in job.sizes}
    if FULL_SIZE in boxes and not boxes[FULL_SIZE]:
        height, width = images.image_size(source)
        raise UserError(f"{source} is {width}x{height}, smaller than a sub-image of {grid.crop_px}x{grid.crop_px}")
    return boxes


def _boxes(job: Job, grid: Grid, size: Fraction) -> list[tuple[int, int]]:
    sides = _sides(images.image_size(job.cuts[0].source), size)
    return grid.boxes(*(side // job.multiple_of * job.multiple_of for side in sides))


def _sides(full_px: tuple[int, int], size: Fraction) -> tuple[int, int]:
    height, width = full_px
    return int(height * size), int(width * size)


def _name(stem: str, number: int, size: Fraction) -> str:
    return f"{stem}_s{number:03d}{'' if size == FULL_SIZE else _scale_suffix(size)}.png"


def _scale_suffix(size: Fraction) -> str:
    return f"_scale{size.numerator}of{size.denominator}"


def _check_earlier_grid(output: Path, settings: str) -> None:
    # The names of sub-images say nothing of the grid, and two grids mixed would pair what does not belong together.
    record = output / GRID_RECORD
    earlier = record.read_text() if record.exists() else None
    if earlier is not None and earlier != settings:
        raise UserError(
            f"{output} was cut with {earlier.strip()}, not {settings.strip()}; resume with the settings of that run, "
            "or give --overwrite"
        )
