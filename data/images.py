"""Image files: the only place that knows OpenCV's BGR order, bit depths and file formats.

Everywhere else an image is an RGB uint8 array (H, W, 3) or a tensor (3, H, W) (`data.tensors`); photographs to upscale
keep more (`data.photographs`).
"""

import os
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sed_sr.data import png
from sed_sr.data.files import atomic_writer
from sed_sr.options.errors import UserError

# Formats that both OpenCV (pixels) and Pillow (header) read.
IMAGE_SUFFIXES = frozenset({".bmp", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_FOLDERS_SEARCHED = 1000  # for a hint in an error message; a large tree of other files takes long

# OpenCV's own messages about a broken file repeat what the UserError says.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
Image.MAX_IMAGE_PIXELS = None  # Pillow reads headers only, which are small however large the image is


def read_unchanged(path: Path) -> np.ndarray:
    """Decode an image as it is stored: any depth, (H, W) or (H, W, C) in OpenCV's channel order.

    EXIF orientation is not applied, so that the images of a pair stay aligned. A palette is looked up.

    Raises:
        UserError: the file is missing, truncated or not an image.
    """
    try:
        encoded = np.frombuffer(Path(path).read_bytes(), np.uint8)
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror}") from error
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    except cv2.error:  # an empty file, or more pixels than OpenCV accepts
        image = None
    if image is None:
        raise UserError(f"cannot decode {path}: it is damaged, not an image, or of a kind that OpenCV does not read")
    return image


def read_rgb(path: Path) -> np.ndarray:
    """Read any image as RGB, (H, W, 3) uint8 in [0, 255].

    Grey is repeated over the three channels. Alpha is dropped, and the colour below it is used, whatever its opacity.
    16 bits become 8 by rounding x / 257. CMYK becomes (255 - C)(255 - K) / 255 and so on, without a colour profile. Of
    an animation the first frame is read. The format is recognized by the content, not by the suffix.

    Raises:
        UserError: the file is missing, damaged or not an image, or holds neither 8 nor 16 bits per channel.
    """
    return as_rgb(read_unchanged(path), path)


def as_rgb(image: np.ndarray, path: Path, *, keep_depth: bool = False) -> np.ndarray:
    """Convert the result of `read_unchanged(path)`, or a part of it, to RGB; see `read_rgb`.

    Args:
        keep_depth: return uint16 for 16 bits per channel.

    Raises:
        UserError: it holds neither 8 nor 16 bits per channel.
    """
    if image.dtype == np.uint16 and not keep_depth:
        image = to_8_bits(image)
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(f"image {path} holds {image.dtype} values; 8 or 16 bits per channel are expected")
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGB)


def to_8_bits(image: np.ndarray) -> np.ndarray:
    """uint16 -> uint8: x / 257, rounded. uint8 is returned as it is."""
    if image.dtype == np.uint8:
        return image
    assert image.dtype == np.uint16, image.dtype
    # 257 is odd, so no quotient lies half-way and adding 128 rounds every one to the nearest.
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


class Cancelled(Exception):
    """Writing an image was cancelled."""


def write_image(
    path: Path,
    image: np.ndarray,
    *,
    alpha: np.ndarray | None = None,
    icc_profile: bytes | None = None,
    compression_level: int = 3,
    durable: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Write an RGB or grey image, (H, W, 3) or (H, W), uint8 or uint16, as PNG with `atomic_writer`.

    It is encoded strip by strip, so that an image of gigabytes needs no further memory.

    Args:
        alpha: (H, W) of the same type.
        durable: as in `atomic_writer`.
        cancelled: called before each strip; True ends the writing. Another thread may change what it returns.

    Raises:
        WriteError: the disk is full, or the file cannot be written for another reason.
        Cancelled: `cancelled` returned True; no file is left.
    """
    path = Path(path)
    assert path.suffix == ".png", path
    with atomic_writer(path, durable=durable) as file:
        for piece in png.encode(image, alpha=alpha, icc_profile=icc_profile, compression_level=compression_level):
            if cancelled():
                raise Cancelled
            file.write(piece)


def write_unchanged(path: Path, image: np.ndarray, *, compression_level: int = 3, durable: bool = True) -> None:
    """Write the result of `read_unchanged`, or a part of it, as PNG of the same depth and channels.

    It is encoded in memory and written with `atomic_writer`; missing folders are created.

    Args:
        durable: as in `atomic_writer`.

    Raises:
        WriteError: the disk is full, or the file cannot be written for another reason.
        UserError: PNG cannot hold such an image (floating point, for instance).
    """
    path = Path(path)
    assert path.suffix == ".png", path
    if image.dtype not in (np.uint8, np.uint16):  # OpenCV would convert them silently
        raise UserError(f"cannot write {path}: PNG does not hold {image.dtype} values")
    # Without the filters that take longest to undo, photographs are decoded a quarter faster and are 0.5 % larger.
    how = [cv2.IMWRITE_PNG_COMPRESSION, compression_level, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FAST_FILTERS]
    _, encoded = cv2.imencode(".png", image, how)
    with atomic_writer(path, durable=durable) as file:
        file.write(encoded.data)


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels from the file's header alone; no pixel is decoded.

    Raises:
        UserError: the file is missing or not an image.
    """
    try:
        with open(path, "rb") as file:
            ((height, width),) = png.sizes_from_headers([file.read(png.HEADER.itemsize)]).tolist()
            if height and width:
                return height, width
            with Image.open(file) as image:  # lazy: pixels stay in the file
                return image.height, image.width
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, RuntimeError... on bad bytes
        reason = getattr(error, "strerror", None) or "it is damaged or not an image"
        raise UserError(f"cannot read the size of {path}: {reason}") from error


def has_suffix(name: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> bool:
    """Whether a file name ends in one of the suffixes, in upper or lower case, and is not hidden."""
    return name.lower().endswith(tuple(suffixes)) and not name.startswith(".")


def list_image_names(folder: Path) -> list[str]:
    """Return the names of the images of a folder, sorted; hidden files and other kinds of file are skipped.

    Raises:
        UserError: the folder is missing, cannot be read or holds no image.
    """
    try:
        names = sorted(filter(has_suffix, os.listdir(folder)))
    except OSError as error:
        raise UserError(f"cannot read the image folder {folder}: {error.strerror}") from error
    if not names:
        expected = f"files ending in {' '.join(sorted(IMAGE_SUFFIXES))} are expected there"
        raise UserError(f"no image in {folder}; {expected}{_sub_folder_hint(folder)}")
    return names


def _sub_folder_hint(root: Path) -> str:
    """Say, after the message that a folder holds no image, which of its sub-folders does; empty if none is found."""
    for folder, sub_folders, names in islice(os.walk(root), MAX_FOLDERS_SEARCHED):
        sub_folders[:] = sorted(name for name in sub_folders if not name.startswith("."))
        if any(map(has_suffix, names)):
            return f"; sub-folders are not searched, and there are images in {folder}: give that folder"
    return ""


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder sorted by name; see `list_image_names`."""
    return [Path(folder, name) for name in list_image_names(folder)]


def strip_scale_suffix(stem: str) -> str:
    """Remove the scale from the end of an LR image's stem: "0001x4" -> "0001"; "ax4b" and "x4" stay as they are."""
    return re.sub(r"(?<=.)[xX][2348]$", "", stem)


def has_scale_suffix(name: str) -> bool:
    """Whether the stem of a file or the name of a folder ends in a scale: "0001x4", "train_x4", "X4"."""
    return re.search(r"[xX][2348]$", name) is not None
