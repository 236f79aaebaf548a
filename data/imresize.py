"""MATLAB's bicubic `imresize`, with which the LR images of DIV2K, Flickr2K and the benchmarks were made."""

import math

import numpy as np

from sed_sr.options.cli import renamed_command

MARGIN_PX = 2  # of output pixels: what a shrunk image shows does not depend on what is further away from it


def imresize(image: np.ndarray, *, scale: float) -> np.ndarray:
    """Resize an image as MATLAB's `imresize(image, scale, 'bicubic')` does.

    Bicubic with a = -0.5 (Keys 1981, Eq. 4). When shrinking, the kernel is widened by 1 / scale (antialiasing). Borders
    are mirrored with the edge pixel repeated. Computed in float64 and rounded once, at the end.

    Args:
        image: (H, W) or (H, W, C). The result is rounded and clipped for unsigned integer types, not for floating
            point.
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


def resize_matrix(size: int, *, scale: float) -> np.ndarray:
    """(ceil(size * scale), size) float64: the matrix that resizes a side as `imresize` does."""
    taps, weights = _taps(size, scale)
    matrix = np.zeros((len(taps), size))
    np.add.at(matrix, (np.arange(len(taps))[:, None], taps), weights)
    return matrix


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5 (Keys 1981, Eq. 4); zero from |x| = 2 on."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))


def _taps(size: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels of a side make each output pixel, and their weights: both (output size, taps)."""
    stretch = max(1, 1 / scale)  # of the kernel
    # Pixel i covers [i, i + 1), so the centre of output pixel i lies here among the centres of the input pixels.
    centre = (np.arange(math.ceil(size * scale)) + 0.5) / scale - 0.5
    first = np.floor(centre - 2 * stretch).astype(int)
    taps = first[:, None] + np.arange(math.ceil(4 * stretch) + 2)  # (output size, taps)
    weights = cubic((centre[:, None] - taps) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = taps % (2 * size)
    return np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored), weights


def _resize_axis(image: np.ndarray, *, axis: int, scale: float) -> np.ndarray:
    taps, weights = _taps(image.shape[axis], scale)
    shape = [1] * image.ndim
    shape[axis] = -1
    resized = np.zeros((*image.shape[:axis], len(taps), *image.shape[axis + 1 :]))
    for k in range(taps.shape[1]):  # tap by tap: all taps at once would need one copy of the image each
        resized += image.take(taps[:, k], axis) * weights[:, k].reshape(shape)
    return resized


if __name__ == "__main__":
    renamed_command("data.imresize", "data.prepare.lr_images")
