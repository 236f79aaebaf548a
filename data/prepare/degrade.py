"""A benchmark for Real SR from HR images: LR is drawn once, from a seed, and then the same for everybody."""

import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from sed_sr.data.degradation.pipeline import Degradation
from sed_sr.data.files import WriteError, flush_file_systems, nearest_existing
from sed_sr.data.images import IMAGE_SUFFIXES, list_images, read_rgb, write_image
from sed_sr.data.prepare.image_jobs import refuse_collisions
from sed_sr.data.tensors import to_array, to_float, to_tensor, to_uint8
from sed_sr.options.errors import UserError

HR, LR = "test_HR", "test_LR"
MIN_PX = 64


def degrade_folder(source: Path, output: Path, degradation: Degradation, *, seed: int) -> int:
    """Write `output`/test_HR and `output`/test_LR, PNG files of the same names: 8-bit RGB, HR cut to whole LR pixels.

    Image k of the folder, in the order of names, is degraded by draws from (seed, k).

    Returns:
        The exit code: 1 when some images are unreadable or too small (they are named on stderr), else 0.

    Raises:
        UserError: the folder has no image, two would be written under one name, or the output holds something.
    """
    paths = list_images(source)
    refuse_collisions({path: f"{path.stem}.png" for path in paths})
    if output.suffix.lower() in IMAGE_SUFFIXES or output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"the LR images of a folder go into a new folder, which {output} is not; give another --output")
    console, failed = Console(stderr=True), 0
    for number, path in enumerate(track(paths, "", console=console, disable=not console.is_terminal)):
        try:
            hr, lr = _degrade(path, degradation, rng=np.random.default_rng([seed, number]))
            write_image(output / LR / f"{path.stem}.png", lr, durable=False)
            # Last: an HR image without its LR would be no pair.
            write_image(output / HR / f"{path.stem}.png", hr, durable=False)
        except WriteError:
            raise
        except UserError as error:
            print(f"failed: {error}", file=sys.stderr)
            failed += 1
    flush_file_systems([nearest_existing(output)])
    print(f"{len(paths) - failed} images degraded, {failed} failed: {output}")
    return int(failed > 0)


def _degrade(path: Path, degradation: Degradation, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """HR (H, W, 3) and LR (H / scale, W / scale, 3) of an image file, uint8."""
    image = read_rgb(path)
    height, width = (side // degradation.scale * degradation.scale for side in image.shape[:2])
    if min(height, width) < MIN_PX:
        raise UserError(f"{path} is {image.shape[1]}x{image.shape[0]}; at least {MIN_PX}x{MIN_PX} is expected")
    hr = image[:height, :width]
    lr = degradation(to_float(to_tensor(hr))[None], rng=rng)
    return hr, to_array(to_uint8(lr[0]))
