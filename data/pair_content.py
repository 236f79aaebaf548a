"""Checks that the LR and HR images of a set show the same content, which their headers do not tell.

They are compared by the detail that survives shrinking, noise, blur and compression: the difference of two Gaussians of
the luminance on the LR grid, by normalised cross-correlation, which does not depend on brightness and contrast.
"""

import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from sed_sr.data.image_folders import first_few, read_image, size_of
from sed_sr.data.imresize import cubic
from sed_sr.data.pack import Tile
from sed_sr.data.pairs import Pairs
from sed_sr.options.errors import UserError

DETAIL_SIGMAS_PX = (0.8, 2.4)  # of the Gaussians, in LR pixels
MIN_CONTRAST = 5  # standard deviation of the detail, of 255; noise of sigma 10 alone has 3
MIN_SIDE_PX = 24  # of LR; smaller images cannot be told apart
MAX_SHIFT_PX = 8  # in LR pixels, and at most a sixth of the side

# Measured on photographs: matching pairs correlate above 0.6, however LR was degraded, and different pictures below 0.4
# (98 % of them at an LR side of 24 pixels, all from 40 pixels on).
OTHER_PICTURE = 0.4
# A shift is reported when the shifted pictures agree, and much better than the unshifted ones, beyond rounding errors:
# a periodic picture looks the same in many places.
SAME_PICTURE = 0.8
SHIFT_GAIN = 0.35
ROUNDING = 0.0003
# A set whose LR was resized to rounded sides has a median of `resize_gain` above this. Measured at scales 2, 3 and 4 on
# photographs: below -0.04 for aligned pairs, and above 0.09 for resized ones, with noise, JPEG and aliasing too. Single
# pairs may be misleading.
RESIZED = 0.05
MIN_RESIZED = 4  # pairs of which the median is taken

# A single image may mislead (one that shows only an edge matches anywhere along it): a set is rejected from two wrong
# pairs on, and one in fifty of those compared.
MIN_WRONG = 2
MIN_WRONG_SHARE = 0.02


def check_content(pairs: Pairs, *, scale: int, samples: int, seed: int) -> int:
    """Compare the content of HR and LR images of some pairs, and reject a set that is shuffled, shifted or resized.

    Resized: where the scale does not divide HR, LR was not made by the exact scale but by resizing HR to rounded sides,
    so that LR and HR drift apart along the image.

    LR may have been made from HR in any way: by any downscaler, including one that keeps the upper left pixel of every
    block (a shift of (scale - 1) / 2 HR pixels), with blur, noise, compression, another brightness or contrast.

    Args:
        pairs: their sizes fit each other (`check_pairs`).
        samples: how many pairs to draw, evenly spread over the set; all of a smaller set.
        seed: of the draw, not negative.

    Returns:
        How many pairs could be compared; the others are too small or have no contrast.

    Raises:
        UserError: at least two pairs and 2 % of those compared are wrong (gives their number and the first few), or the
            pairs with sides that the scale does not divide are resized, or an image cannot be read.
    """

    def compare(index: int) -> tuple[str | None, float | None] | None:
        hr, lr = map(_read_luminance, pairs[index])
        values = similarity(hr, lr, scale=scale)
        if values is None:
            return None
        return find_fault(values, scale=scale), resize_gain(hr, lr, values, scale=scale)

    sample = _spread(len(pairs), samples, seed)
    with ThreadPoolExecutor() as executor:
        found = list(executor.map(compare, sample))
    compared = [(index, *result) for index, result in zip(sample, found, strict=True) if result is not None]
    gains = {index: gain for index, _, gain in compared if gain is not None}
    _check_gains({pairs[index]: gain for index, gain in gains.items()}, pairs.hr.root, pairs.lr.root, scale=scale)
    problems = [f"{pairs[index][1].name} {fault}" for index, fault, _ in compared if fault]
    if len(problems) >= max(MIN_WRONG, MIN_WRONG_SHARE * len(compared)):
        raise UserError(
            f"{len(problems)} of {len(compared)} compared {pairs} do not match: {first_few(problems, separator='; ')}"
        )
    return len(compared)


def check_aligned(
    pairs: Sequence[tuple[Path | Tile, Path | Tile]], *, hr_root: Path, lr_root: Path, scale: int, samples: int = 16
) -> None:
    """Check that LR was not made by resizing HR to rounded sides, as `check_content` does.

    Compares some of the pairs whose sides the scale does not divide. Images that cannot be read are skipped.

    Args:
        pairs: of these folders, at least one.
        samples: how many pairs to compare at most.

    Raises:
        UserError: LR was made so.
    """

    def is_rounded(pair: tuple[Path | Tile, Path | Tile]) -> bool:
        try:
            hr_size, lr_size = map(size_of, pair)
        except UserError:
            return False
        return hr_size != tuple(scale * side for side in lr_size)

    def compare(pair: tuple[Path | Tile, Path | Tile]) -> float | None:
        try:
            hr, lr = map(_read_luminance, pair)
        except UserError:
            return None
        values = similarity(hr, lr, scale=scale)
        return None if values is None else resize_gain(hr, lr, values, scale=scale)

    rounded = [pair for pair in pairs if is_rounded(pair)]
    sample = [rounded[index] for index in _spread(len(rounded), samples, seed=0)]
    with ThreadPoolExecutor() as executor:
        gains = dict(zip(sample, executor.map(compare, sample), strict=True))
    known = {pair: gain for pair, gain in gains.items() if gain is not None}
    _check_gains(known, hr_root, lr_root, scale=scale)


def _read_luminance(path: Path | Tile) -> np.ndarray:
    """(H, W) float32 in [0, 255]."""
    return cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY).astype(np.float32)


def similarity(hr: np.ndarray, lr: np.ndarray, *, scale: int) -> np.ndarray | None:
    """Correlate the detail of an LR image with that of its HR image, shrunk after every shift by whole HR pixels.

    The middle of LR is searched in HR, so that every shift compares the same number of pixels.

    Args:
        hr, lr: luminance, (H, W) and about (H / scale, W / scale) float32 in [0, 255]. If an LR side was rounded up,
            its last pixel is not used.

    Returns:
        (2R + scale, 2R + scale) float32 in [-1, 1]: at (R + y, R + x) for an LR image that shows what lies y HR pixels
        down and x to the right of the right place; R is a multiple of the scale. None when an
        image is too small or has no contrast.
    """
    height, width = (min(lr.shape[axis], hr.shape[axis] // scale) for axis in (0, 1))
    if min(height, width) < MIN_SIDE_PX:
        return None
    reach = min(min(height, width) // 6, MAX_SHIFT_PX)
    middle = (slice(reach, height - reach), slice(reach, width - reach))
    wanted = _detail(lr[:height, :width])[middle]
    # Means of the blocks that begin at every HR pixel: every scale-th of them is HR shrunk after one of the shifts.
    blocks = cv2.blur(hr, (scale, scale), anchor=(0, 0))
    values = np.empty((scale * (2 * reach + 1),) * 2, np.float32)
    for y in range(scale):
        for x in range(scale):
            shrunk = _detail(blocks[y::scale, x::scale][:height, :width])
            if y == x == 0 and min(shrunk[middle].std(), wanted.std()) < MIN_CONTRAST:
                return None
            values[y::scale, x::scale] = cv2.matchTemplate(shrunk, wanted, cv2.TM_CCOEFF_NORMED)
    return values


def find_fault(values: np.ndarray, *, scale: int) -> str | None:
    """Describe what is wrong with a pair of this `similarity`, to follow the LR image's name; None if nothing is."""
    zero = (len(values) - scale) // 2
    in_place = _in_place(values, scale)
    inside = values[1:-1, 1:-1]  # a maximum on the border may be the slope of one outside
    y, x = (int(place) + 1 - zero for place in np.unravel_index(inside.argmax(), inside.shape))
    best = inside.max()
    gain = best - in_place
    shifted = max(abs(y), abs(x)) > (scale - 1) / 2
    if shifted and best >= SAME_PICTURE and gain >= max(SHIFT_GAIN * (1 - in_place), ROUNDING):
        ways = ((x, "right", "left"), (y, "down", "up"))
        where = " and ".join(f"{abs(px)} px {ahead if px > 0 else back}" for px, ahead, back in ways if px)
        return f"is shifted: it shows what is {where} in HR"
    return "shows another picture" if in_place < OTHER_PICTURE else None


def resize_gain(hr: np.ndarray, lr: np.ndarray, values: np.ndarray, *, scale: int) -> float | None:
    """How much better LR matches HR resized to exactly `scale` times its sides than HR itself.

    Args:
        hr, lr: as for `similarity`.
        values: their similarity.

    Returns:
        The gain in correlation, as a share of what the correlation with HR itself lacks: positive where LR was made by
        resizing HR to its sides, and negative where it was made by the exact scale. None when these are the same, or
        the pictures differ in other ways.
    """
    sides = tuple(scale * side for side in lr.shape)
    if sides == hr.shape:
        return None
    # cut to what `similarity` compares of HR itself
    resized = cv2.resize(hr, sides[::-1], interpolation=cv2.INTER_CUBIC)[: hr.shape[0], : hr.shape[1]]
    resized_values = similarity(resized, lr, scale=scale)
    if resized_values is None:
        return None
    exact, rounded = _in_place(values, scale), _in_place(resized_values, scale)
    return (rounded - exact) / max(1 - exact, ROUNDING) if max(exact, rounded) >= SAME_PICTURE else None


def _in_place(values: np.ndarray, scale: int) -> float:
    """The largest similarity without a shift, or with one by which a downscaler may shift."""
    zero = (len(values) - scale) // 2
    # For an even scale, a downscaler that keeps one pixel of every block shifts by half pixels.
    allowed = np.arange(1 - scale, scale) / 2
    whole = np.arange(-scale, scale + 1)
    weights = cubic(allowed[:, None] - whole)
    around = values[zero - scale : zero + scale + 1, zero - scale : zero + scale + 1]
    return float((weights @ around @ weights.T).max())


def _check_gains(
    gains: dict[tuple[Path | Tile, Path | Tile], float], hr_root: Path, lr_root: Path, *, scale: int
) -> None:
    """Raise UserError if these `resize_gain` of pairs show that LR was made by resizing to rounded sides."""
    if len(gains) < MIN_RESIZED or np.median(list(gains.values())) <= RESIZED:
        return
    hr, lr = max(gains, key=lambda pair: gains[pair])
    (height, width), (lr_height, lr_width) = size_of(hr), size_of(lr)
    words = ("data.prepare.lr_images", "--input", hr_root, "--output", f"{lr_root}_aligned")
    command = shlex.join(["python", "-m", *map(str, words), "--scale", str(scale)])
    raise UserError(
        f"the pairs of {hr_root} and {lr_root} are not aligned: {lr.name} is {lr_width}x{lr_height} and was made by "
        f"resizing {width}x{height} to rounded sides, so that it drifts away from HR; HR should be cropped to "
        f"multiples of {scale} first, as by this command, which makes LR again: {command}"
    )


def _detail(image: np.ndarray) -> np.ndarray:
    fine, coarse = (cv2.GaussianBlur(image, (0, 0), sigma) for sigma in DETAIL_SIGMAS_PX)
    return fine - coarse


def _spread(length: int, samples: int, seed: int) -> list[int]:
    # One random index from each of equal parts of the set.
    edges = np.linspace(0, length, min(samples, length) + 1).astype(int)
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:]).tolist()
