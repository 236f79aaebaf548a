"""Sub-images as PNG files: cutting the images of one job, at full and at reduced sizes."""

import itertools
from fractions import Fraction

import numpy as np
from PIL import Image

from sed_sr.data import images, png
from sed_sr.data.prepare.grid import FULL_SIZE, Grid, Job, scaled_sides
from sed_sr.data.prepare.jobs import remove_damaged


def cut_images(job: Job, *, grid: Grid, compression_level: int, resume: bool) -> int:
    """Write the sub-images of one job and return how many; with `resume`, only those that do not exist yet.

    Raises:
        UserError: an image is unreadable or, in full size, smaller than a sub-image, or the sizes of a pair do not
            fit each other; nothing has been written then.
        WriteError: a sub-image cannot be written.
    """
    job.check(grid)
    # Every image is decoded before anything is written: sub-images without their LR would have no partner.
    to_write = []
    for cut in job.cuts:
        missing = [target for target in job.subimages(cut, grid) if not (resume and target.path.exists())]
        if missing:
            to_write.append((cut, images.read_unchanged(cut.source), missing))
    for cut, image, missing in to_write:
        crop_px = grid.crop_px // cut.shrink
        for size, targets in itertools.groupby(missing, key=lambda target: target.size):
            resized = at_size(image, size)
            for _, path, top, left in targets:
                subimage = resized[top : top + crop_px, left : left + crop_px]
                images.write_unchanged(path, subimage, compression_level=compression_level, durable=False)
    return sum(len(missing) for _, _, missing in to_write)


def remove_damaged_subimages(job: Job, *, grid: Grid) -> int:
    """Remove the damaged sub-images of one job; return how many.

    Raises:
        UserError: as `cut_images`; nothing has been removed then.
    """
    job.check(grid)
    paths = (target.path for cut in job.cuts for target in job.subimages(cut, grid))
    return remove_damaged(paths, is_intact=png.is_intact)


def at_size(image: np.ndarray, size: Fraction) -> np.ndarray:
    """An image at a size, shrunk by `lanczos`."""
    return image if size == FULL_SIZE else lanczos(image, *scaled_sides(image.shape[:2], size))


def lanczos(image: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """Shrink an image by Pillow's Lanczos filter, as the multi-scale copies of Real-ESRGAN are made.

    Args:
        image: (H, W) or (H, W, C), 8 or 16 bits. Each channel is shrunk by itself, colour below alpha too: a training
            set drops alpha and uses the colour as it is.

    Returns:
        (height_px, width_px) or (height_px, width_px, C) of the same depth.
    """
    channels = [_lanczos_channel(channel, height_px, width_px) for channel in np.moveaxis(np.atleast_3d(image), 2, 0)]
    return channels[0] if image.ndim == 2 else np.stack(channels, axis=-1)


def _lanczos_channel(channel: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    # Not every release of Pillow filters 16-bit integers. Other depths than 8 and 16 bits are rejected when written.
    values = channel if channel.dtype == np.uint8 else channel.astype(np.float32)
    shrunk = np.asarray(Image.fromarray(values).resize((width_px, height_px), Image.Resampling.LANCZOS))
    return shrunk.round().clip(0, 65535).astype(np.uint16) if channel.dtype == np.uint16 else shrunk
