"""A benchmark made from HR images: ground truth cut to sides that every scale divides, and its MATLAB-bicubic LR.

The sets of SwinIR and BasicSR are made so, and their LR files come out bit for bit.
"""

import functools
import os
import re
from pathlib import Path

import numpy as np

from sed_sr.data import images
from sed_sr.data.imresize import imresize
from sed_sr.data.prepare import image_jobs
from sed_sr.options.errors import UserError

SIDE_UNIT_PX = 12  # sides are cut to a multiple of it, so that the ground truth is the same at scales 2, 3 and 4
# Where the HR images are in the folders that are handed around: as BasicSR and KAIR, EDSR, DIV2K, SwinIR name it.
HR_FOLDERS = ("original", "HR", "DIV2K_valid_HR", "GTmod12")


def prepare(
    source: Path, output: Path, *, scale: int, workers: int, compression_level: int, overwrite: bool, resume: bool
) -> int:
    """Write <output>/GTmod12/<image>.png and <output>/LRbicx4/<image>.png (at scale 4) from a folder of HR images.

    Args:
        source: HR images alone, or a folder in one of the layouts that benchmarks come in.
        output: the folder of the benchmark.

    Returns:
        The exit code: 1 when some images failed, else 0.

    Raises:
        UserError: there are no HR images, or two would be written under one name, or the output is in use; nothing
            was written then. Or an image could not be written.
    """
    layout, named = find_ground_truth(source, scale=scale)
    print(f"{source}: {len(named)} HR images {layout}")
    image_jobs.refuse_collisions({path: f"{name}.png" for path, name in named.items()})
    gt_folder, lr_folder = output / f"GTmod{SIDE_UNIT_PX}", output / f"LRbicx{scale}"
    image_jobs.prepare_outputs(
        [gt_folder, lr_folder],
        inputs=sorted({path.parent for path in named}),
        pattern=r".+\.png",
        overwrite=overwrite,
        resume=resume,
    )
    work = functools.partial(
        write_pair,
        gt_folder=gt_folder,
        lr_folder=lr_folder,
        scale=scale,
        compression_level=compression_level,
        resume=resume,
    )
    return image_jobs.run(
        work,
        list(named.items()),
        workers=workers,
        made=f"images in {output}",
        outputs=[gt_folder, lr_folder],
        remove_damaged_of=functools.partial(remove_damaged_pair, gt_folder=gt_folder, lr_folder=lr_folder),
    )


def find_ground_truth(folder: Path, *, scale: int) -> tuple[str, dict[Path, str]]:
    """The layout of a folder in words, and its HR images with the name that each gets in the benchmark.

    Raises UserError where there is no HR image.
    """
    for name in HR_FOLDERS:
        if os.path.isdir(folder / name):
            return f"in {name}", {path: path.stem for path in images.list_images(folder / name)}
    beside = folder / f"image_SRF_{scale}"
    listed = images.list_images(beside if os.path.isdir(beside) else folder)
    marked = [path for path in listed if path.stem.endswith("_HR")]
    if not marked:
        return "in a flat folder", {path: path.stem for path in listed}
    return "called *_HR", {path: re.sub(r"(_SRF_\d)?_HR$", "", path.stem) for path in marked}


def remove_damaged_pair(named: tuple[Path, str], *, gt_folder: Path, lr_folder: Path) -> int:
    """Remove those files of `write_pair` that an earlier run left damaged; return how many."""
    _, name = named
    return image_jobs.remove_damaged(
        [gt_folder / f"{name}.png", lr_folder / f"{name}.png"], is_whole=images.is_whole_png
    )


def write_pair(
    named: tuple[Path, str], *, gt_folder: Path, lr_folder: Path, scale: int, compression_level: int, resume: bool
) -> int:
    """Write the ground truth and the LR image of an HR image and its name; return the number of files written.

    Both are 8-bit RGB, as scores are computed on it: see `images.read_rgb`.
    """
    source, name = named
    gt_path, lr_path = gt_folder / f"{name}.png", lr_folder / f"{name}.png"
    if resume and gt_path.exists() and lr_path.exists():
        return 0
    hr = images.read_rgb(source)
    height, width = (side // SIDE_UNIT_PX * SIDE_UNIT_PX for side in hr.shape[:2])
    if not height or not width:
        raise UserError(f"{source} is {hr.shape[1]}x{hr.shape[0]}, smaller than {SIDE_UNIT_PX}x{SIDE_UNIT_PX}")
    gt = np.ascontiguousarray(hr[:height, :width])
    for path, image in ((gt_path, gt), (lr_path, imresize(gt, scale=1 / scale))):
        images.write_image(path, image, compression_level=compression_level, durable=False)
    return 2
