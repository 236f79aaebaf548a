"""Cutting large images into overlapping sub-images, which a training run reads far faster than the originals.

HR images that need no LR can be cut at reduced sizes too, where a sub-image shows more of the scene: the multi-scale
copies that Real-ESRGAN is trained on.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from sed_sr.data import pack
from sed_sr.data.files import write_text
from sed_sr.data.prepare.grid import FULL_SIZE, Grid, Job
from sed_sr.data.prepare.jobs import prepare_outputs, run, written_bytes
from sed_sr.data.prepare.subimage_files import cut_images, remove_damaged_subimages
from sed_sr.data.prepare.subimage_packs import check_free_disk, pack_images, remove_damaged_pixels, table_rows
from sed_sr.options.errors import UserError

GRID_RECORD = ".grid"  # in the folder of sub-images: how they were cut
WRITTEN_NAME = rf".+_s\d{{3,}}(_scale\d+of\d+)?\.png|{pack.FILE_NAME}"


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

    Those of reduced sizes are called 0001_s001_scale1of3.png. An image that is smaller than a sub-image at a reduced
    size is not cut at that size.

    Args:
        packed: make a pack (`data.pack`) of each output folder, with the sub-images that the files would hold.

    Returns:
        The exit code: 1 when some images are unreadable, too small or do not fit their partner (they are named on
        stderr and the others are cut), else 0.

    Raises:
        UserError: the grid or an output folder cannot be used (before any work), or an output cannot be written.
    """
    multiple_of = max(job.multiple_of for job in jobs)
    _check_grid(grid, multiple_of=multiple_of)
    _check_some_fit(jobs, grid)
    cuts = jobs[0].cuts  # every job has the same folders and sizes
    outputs = [cut.output for cut in cuts]
    records = _records(jobs[0], grid, multiple_of=multiple_of, packed=packed)
    if resume:
        for output, settings in records.items():
            _check_earlier_grid(output, settings)
    if packed:
        freed_bytes = {output: written_bytes(output, WRITTEN_NAME) if overwrite else 0 for output in outputs}
        check_free_disk(jobs, grid, freed_bytes=freed_bytes, resume=resume)
    prepare_outputs(
        outputs,
        inputs=[cut.source.parent for cut in cuts],
        pattern=WRITTEN_NAME,
        overwrite=overwrite,
        resume=resume,
    )
    for output, settings in records.items():
        write_text(output / GRID_RECORD, settings)
    _print_left_out(jobs, grid)
    pool = {"workers": workers, "outputs": outputs}
    where = " and ".join(map(str, outputs))
    if not packed:
        return run(
            functools.partial(cut_images, grid=grid, compression_level=compression_level, resume=resume),
            jobs,
            made=f"sub-images in {where}",
            remove_damaged_of=functools.partial(remove_damaged_subimages, grid=grid),
            **pool,
        )
    for output in outputs:
        pack.write_table(output, [])
    exit_code = run(
        functools.partial(pack_images, grid=grid, resume=resume),
        jobs,
        made=f"images in {where}",
        remove_damaged_of=remove_damaged_pixels,
        **pool,
    )
    for number, output in enumerate(outputs):
        pack.write_table(output, table_rows(jobs, grid, number))
    return exit_code


def _records(job: Job, grid: Grid, *, multiple_of: int, packed: bool) -> dict[Path, str]:
    """The settings of each output folder, in the pixels of its images."""
    at_sizes = "" if job.sizes == (FULL_SIZE,) else f", at scales {' '.join(map(str, job.sizes))}"
    return {
        cut.output: f"crop_size {grid.crop_px // cut.shrink}, step {grid.step_px // cut.shrink}, "
        f"thresh_size {grid.thresh_px / cut.shrink:g}, at multiples of {multiple_of // cut.shrink}{at_sizes}"
        f"{', packed' if packed else ''}\n"
        for cut in job.cuts
    }


def _check_earlier_grid(output: Path, settings: str) -> None:
    # The names of sub-images do not show the grid, and files of two grids would be paired wrongly.
    record = output / GRID_RECORD
    earlier = record.read_text() if record.exists() else None
    if earlier is not None and earlier != settings:
        raise UserError(
            f"{output} was cut with {earlier.strip()}, not {settings.strip()}; resume with the settings of that run, "
            "or give --overwrite"
        )


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
    # Before `overwrite` removes the files of an earlier run.
    largest = jobs[0].sizes[0]
    if not any(job.fits(grid, largest) for job in jobs):
        at_size = "" if largest == FULL_SIZE else f" at scale {largest}"
        raise UserError(
            f"no image in {jobs[0].cuts[0].source.parent} is{at_size} as large as a sub-image of "
            f"{grid.crop_px}x{grid.crop_px}; give another --crop_size (and --step)"
        )


def _print_left_out(jobs: Sequence[Job], grid: Grid) -> None:
    for size in jobs[0].sizes:
        if size == FULL_SIZE:
            continue  # there, an image that is too small is reported as failed
        small = sum(job.fits(grid, size) is False for job in jobs)
        if small:
            print(f"at scale {size}, {small} of {len(jobs)} images are smaller than a sub-image and left out")
