"""Sub-images as a pack (`data.pack`): the pixels of the images of one job, and the table of the sub-images."""

import collections
import math
import shutil
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from sed_sr.data import images, pack
from sed_sr.data.files import nearest_existing
from sed_sr.data.prepare.grid import Cut, Grid, Job, scale_suffix, scaled_sides
from sed_sr.data.prepare.jobs import remove_damaged
from sed_sr.data.prepare.subimage_files import at_size
from sed_sr.options.errors import UserError


def pack_images(job: Job, *, grid: Grid, resume: bool) -> int:
    """Write the pixels of the images of one job, at every size that is cut, and return how many files; with `resume`,
    only those that do not exist yet.

    Raises:
        UserError, WriteError: as `subimage_files.cut_images`.
    """
    job.check(grid)
    to_write = []
    for cut in job.cuts:
        missing = [
            (size, target)
            for size, target in _pixel_files(job, cut).items()
            if job.boxes(grid, size) and not (resume and target.exists())
        ]
        if missing:
            image = images.read_unchanged(cut.source)
            to_write += [(target, images.as_rgb(at_size(image, size), cut.source)) for size, target in missing]
    for target, rgb in to_write:
        pack.write_pixels(target, rgb)
    return len(to_write)


def remove_damaged_pixels(job: Job) -> int:
    """Remove the damaged files of one job in a pack; return how many."""
    paths = (path for cut in job.cuts for path in _pixel_files(job, cut).values())
    return remove_damaged(paths, is_intact=pack.is_intact)


def table_rows(jobs: Sequence[Job], grid: Grid, cut_number: int) -> Iterator[tuple[str, str, int, int, int]]:
    """The rows of the table of the pack that contains cut `cut_number` of every job; see `pack.write_table`.

    Images that failed, or whose partner failed, are left out.
    """
    for job in jobs:
        cut = job.cuts[cut_number]
        pixel_files = [_pixel_files(job, other) for other in job.cuts]
        complete = {size for size in job.sizes if all(files[size].exists() for files in pixel_files)}
        if complete:
            for size, path, top, left in job.subimages(cut, grid):
                if size in complete:
                    yield path.name, pixel_files[cut_number][size].name, top, left, grid.crop_px // cut.shrink


def check_free_disk(jobs: Sequence[Job], grid: Grid, *, freed_bytes: dict[Path, int], resume: bool) -> None:
    """Raise UserError when the packs would not fit on the disk. They are not compressed, so their size is known.

    Args:
        freed_bytes: for each output folder, the size of the files in it that will be removed first.
    """
    outputs = [cut.output for cut in jobs[0].cuts]
    needed_bytes, free_bytes = collections.Counter(), {}
    for number, output in enumerate(outputs):
        folder = nearest_existing(output)
        disk = folder.stat().st_dev
        free_bytes[disk] = shutil.disk_usage(folder).free
        needed_bytes[disk] += sum(_pack_bytes(job, grid, number, resume=resume) for job in jobs)
        needed_bytes[disk] -= freed_bytes[output]
    for disk, needed in needed_bytes.items():
        if needed > free_bytes[disk]:
            raise UserError(
                f"{' and '.join(map(str, outputs))} would grow by {needed / 1e9:.3g} GB, but "
                f"{free_bytes[disk] / 1e9:.3g} GB are free there"
            )


def _pack_bytes(job: Job, grid: Grid, cut_number: int, *, resume: bool) -> int:
    cut = job.cuts[cut_number]
    files = _pixel_files(job, cut)
    sizes = [size for size in job.sizes if job.fits(grid, size) and not (resume and files[size].exists())]
    try:
        return sum(3 * math.prod(scaled_sides(images.image_size(cut.source), size)) for size in sizes)
    except UserError:  # an unreadable header is reported later, by name
        return 0


def _pixel_files(job: Job, cut: Cut) -> dict[Fraction, Path]:
    # With the size in every name: another image may be called "a_scale1of2".
    return {size: cut.output / f"{job.stem}{scale_suffix(size)}{pack.PIXELS_SUFFIX}" for size in job.sizes}
