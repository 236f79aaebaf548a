"""MATLAB's bicubic `imresize`, by which the LR images of DIV2K, Flickr2K and the benchmarks were made.

As a command it makes the LR images of a folder: `python -m data.imresize --input DF2K/train --output DF2K/train_x4`.
"""

import argparse
import functools
import math
from pathlib import Path

import numpy as np

from sed_sr.data import images
from sed_sr.data.prepare import image_jobs
from sed_sr.options.cli import run
from sed_sr.options.errors import UserError


def imresize(image: np.ndarray, *, scale: float) -> np.ndarray:
    """Resize an image as MATLAB's `imresize(image, scale, 'bicubic')` does.

    Bicubic with a = -0.5 (Keys 1981, Eq. 4), widened by 1 / scale when shrinking (antialiasing), borders mirrored with
    the edge pixel repeated. Computed in float64 and rounded once, at the end.

    Args:
        image: (H, W) or (H, W, C), of an unsigned integer type (rounded and clipped to its range) or floating point
            (neither).
        scale: > 1 enlarges, < 1 shrinks.

    Returns:
        (ceil(H * scale), ceil(W * scale)) and the channels, of the image's type.
    """
    resized = image.astype(np.float64)
    for axis in (0, 1):
        resized = _resize_axis(resized, axis=axis, scale=scale)
    if np.issubdtype(image.dtype, np.floating):
        return resized.astype(image.dtype)
    # MATLAB rounds halves away from zero, numpy to the even neighbour.
    return np.clip(np.floor(resized + 0.5), 0, np.iinfo(image.dtype).max).astype(image.dtype)


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5 (Keys 1981, Eq. 4); zero from |x| = 2 on."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))


def _resize_axis(image: np.ndarray, *, axis: int, scale: float) -> np.ndarray:
    size = image.shape[axis]
    stretch = max(1, 1 / scale)  # of the kernel
    # Pixel i covers [i, i + 1), so the centre of output pixel i lies here among the centres of the input pixels.
    centre = (np.arange(math.ceil(size * scale)) + 0.5) / scale - 0.5
    first = np.floor(centre - 2 * stretch).astype(int)
    taps = first[:, None] + np.arange(math.ceil(4 * stretch) + 2)  # (output size, taps)
    weights = cubic((centre[:, None] - taps) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = taps % (2 * size)
    mirrored = np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    shape = [1] * image.ndim
    shape[axis] = -1
    # One tap after the other: all taps at once would take as many copies of the image.
    return sum(image.take(mirrored[:, k], axis) * weights[:, k].reshape(shape) for k in range(taps.shape[1]))


def shrink_file(source: Path, *, output: Path, scale: int, compression_level: int, resume: bool) -> int:
    """Write 0001.png of a folder as 0001x4.png of another, `scale` times smaller; return the number of files written.

    The image is first cut at the right and the bottom to a multiple of the scale.
    """
    target = _target(source, output, scale)
    if resume and target.exists():
        return 0
    image = images.read_unchanged(source)
    height, width = (side // scale * scale for side in image.shape[:2])
    if not height or not width:
        raise UserError(f"{source} is {image.shape[1]}x{image.shape[0]}, too small to be shrunk {scale} times")
    shrunk = imresize(image[:height, :width], scale=1 / scale)
    images.write_unchanged(target, shrunk, compression_level=compression_level, durable=False)
    return 1


def remove_damaged_file(source: Path, *, output: Path, scale: int) -> int:
    """Remove the file of `shrink_file` if an earlier run left it damaged; return how many that are."""
    return image_jobs.remove_damaged([_target(source, output, scale)], is_whole=images.is_whole_png)


def _target(source: Path, output: Path, scale: int) -> Path:
    return output / f"{source.stem}x{scale}.png"


def main() -> int:
    """Shrink every image of a folder; return the exit code, 1 when some images failed."""
    parser = argparse.ArgumentParser(prog="python -m data.imresize", description="Make LR images from HR images.")
    parser.add_argument("--input", type=Path, required=True, help="folder of HR images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the LR images, 0001x4.png from 0001.png")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4, 8), default=4, help="how many times smaller (default 4)")
    image_jobs.add_arguments(parser)
    args = parser.parse_args()
    image_jobs.check_arguments(args)

    sources = images.list_images(args.input)
    image_jobs.refuse_collisions({source: f"{source.stem}x{args.scale}.png" for source in sources})
    image_jobs.prepare_outputs(
        [args.output],
        inputs=[args.input],
        pattern=rf".+x{args.scale}\.png",
        overwrite=args.overwrite,
        resume=args.resume,
    )
    shrink = functools.partial(
        shrink_file,
        output=args.output,
        scale=args.scale,
        compression_level=args.compression_level,
        resume=args.resume,
    )
    return image_jobs.run(
        shrink,
        sources,
        workers=args.n_thread,
        made=f"LR images in {args.output}",
        outputs=[args.output],
        remove_damaged_of=functools.partial(remove_damaged_file, output=args.output, scale=args.scale),
    )


if __name__ == "__main__":
    run(main)
