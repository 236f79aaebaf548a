"""Image files and tensors: the only place that knows OpenCV's BGR order, uint8 against float, and how files are made.

Everywhere else an image is an RGB uint8 array (H, W, 3) or a tensor (3, H, W). torch is imported only where a tensor is
made, so that the processes that cut or shrink images start without it.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from sed_sr.data.files import atomic_writer
from sed_sr.options.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Formats that both OpenCV (pixels) and Pillow (header) read.
IMAGE_SUFFIXES = frozenset({".bmp", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FOLDERS_SEARCHED = 1000  # for images to tell of; a large tree of other files takes long
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = np.dtype(
    [("signature", "S8"), ("chunk_bytes", ">u4"), ("chunk", "S4"), ("width", ">u4"), ("height", ">u4")]
)
PNG_AVERAGE = 3  # the filter that predicts a byte by the mean of those to the left and above
STRIP_BYTES = 2**22  # of an image, as it is encoded

# What OpenCV prints about a broken file repeats, less readably, what the UserError says.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
Image.MAX_IMAGE_PIXELS = None  # Pillow reads headers only, which are small however large the image is


def read_unchanged(path: Path) -> np.ndarray:
    """Decode an image as it is stored: any depth, (H, W) or (H, W, C) in OpenCV's channel order.

    EXIF orientation is not applied, so that the images of a pair stay as they were made. A palette is looked up.

    Raises:
        UserError: the file is missing, truncated or no image.
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

    Grey is repeated over the three channels, alpha is dropped (the colour below it counts, whatever its opacity), and
    16 bits become 8 by rounding x / 257. CMYK becomes (255 - C)(255 - K) / 255 and so on, without a colour profile. Of
    an animation the first frame is read. The name's suffix does not matter, the content does.

    Raises:
        UserError: the file is missing, damaged or no image, or holds neither 8 nor 16 bits per channel.
    """
    return as_rgb(read_unchanged(path), path)


def as_rgb(image: np.ndarray, path: Path) -> np.ndarray:
    """Turn what `read_unchanged` returned for `path`, or a part of it, into RGB, as `read_rgb` says.

    Raises:
        UserError: it holds neither 8 nor 16 bits per channel.
    """
    if image.dtype == np.uint16:
        # 257 is odd, so no quotient lies half-way and adding 128 rounds every one to the nearest.
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"image {path} holds {image.dtype} values; 8 or 16 bits per channel are expected")
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGB)


class Cancelled(Exception):
    """An image was not written to its end, as asked."""


def write_image(
    path: Path,
    rgb: np.ndarray,
    *,
    compression_level: int = 3,
    durable: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Write an RGB image, (H, W, 3) uint8, as PNG by `atomic_writer`.

    It is encoded strip by strip, so that an image of gigabytes takes no more memory than it has already.

    Args:
        durable: as of `atomic_writer`.
        cancelled: asked before each strip whether to give up, from another thread for instance.

    Raises:
        WriteError: the disk is full, or the file cannot be written for another reason.
        Cancelled: it was given up, and nothing is left of it.
    """
    path = Path(path)
    assert path.suffix == ".png", path
    assert rgb.dtype == np.uint8, rgb.dtype
    assert rgb.ndim == 3, rgb.shape
    assert rgb.shape[2] == 3, rgb.shape
    with atomic_writer(path, durable=durable) as file:
        for piece in _png(rgb, compression_level):
            if cancelled():
                raise Cancelled
            file.write(piece)


def write_unchanged(path: Path, image: np.ndarray, *, compression_level: int = 3, durable: bool = True) -> None:
    """Write what `read_unchanged` returned, or a part of it, as PNG of the same depth and channels.

    The file is encoded in memory and written by `atomic_writer`; folders on the way are created.

    Args:
        durable: as of `atomic_writer`.

    Raises:
        WriteError: the disk is full, or the file cannot be written for another reason.
        UserError: PNG cannot hold such an image (floating point, for instance).
    """
    path = Path(path)
    assert path.suffix == ".png", path
    if image.dtype not in (np.uint8, np.uint16):  # OpenCV would convert them without a word
        raise UserError(f"cannot write {path}: PNG does not hold {image.dtype} values")
    # Without the filters that take longest to undo, photographs are decoded a quarter faster and 0.5 % larger.
    how = [cv2.IMWRITE_PNG_COMPRESSION, compression_level, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FAST_FILTERS]
    _, encoded = cv2.imencode(".png", image, how)
    with atomic_writer(path, durable=durable) as file:
        file.write(encoded)


def _png(rgb: np.ndarray, compression_level: int) -> Iterator[bytes]:
    """The pieces of a PNG file (ISO/IEC 15948), one for each strip of the image."""
    height, width = rgb.shape[:2]
    bits, truecolour = 8, 2
    yield PNG_SIGNATURE + _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, truecolour, 0, 0, 0))
    packer = zlib.compressobj(compression_level)
    above = np.zeros((1, 3 * width), np.uint8)
    rows_at_once = max(1, STRIP_BYTES // (3 * width))
    for top in range(0, height, rows_at_once):
        rows = rgb[top : top + rows_at_once].reshape(-1, 3 * width)
        left = np.zeros_like(rows)
        left[:, 3:] = rows[:, :-3]
        above = np.concatenate((above, rows))
        mean = (left & above[:-1]) + ((left ^ above[:-1]) >> 1)  # of two bytes, rounded down, without an overflow
        filtered = np.full((len(rows), 1 + 3 * width), PNG_AVERAGE, np.uint8)
        np.subtract(rows, mean, out=filtered[:, 1:])
        above = above[-1:]
        yield _png_chunk(b"IDAT", packer.compress(filtered))
    yield _png_chunk(b"IDAT", packer.flush()) + _png_chunk(b"IEND", b"")


def _png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def is_whole_png(path: Path) -> bool:
    """Whether a file is a PNG image as it was written: the CRC-32 of every chunk is right, and IEND ends the file.

    No pixel is decoded. A file that cannot be read is not whole.
    """
    try:
        content = memoryview(Path(path).read_bytes())
        start, name = len(PNG_SIGNATURE), b""
        while name != b"IEND":
            length, name = struct.unpack_from(">I4s", content, start)
            end = start + 8 + length
            (checksum,) = struct.unpack_from(">I", content, end)
            if checksum != zlib.crc32(content[start + 4 : end]):
                return False
            start = end + 4
    except (OSError, struct.error):  # struct.error: the file ends within a chunk
        return False
    return content[: len(PNG_SIGNATURE)] == PNG_SIGNATURE and start == len(content)


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels from the file's header alone; no pixel is decoded.

    Raises:
        UserError: the file is missing or no image.
    """
    try:
        with open(path, "rb") as file:
            ((height, width),) = _sizes_in([file.read(PNG_HEADER.itemsize)]).tolist()
            if height and width:
                return height, width
            with Image.open(file) as image:  # lazy: pixels stay in the file
                return image.height, image.width
    except Exception as error:  # of broken bytes Pillow's plugins say OSError, SyntaxError, ValueError, RuntimeError...
        reason = getattr(error, "strerror", None) or "it is damaged or not an image"
        raise UserError(f"cannot read the size of {path}: {reason}") from error


def png_sizes(folder: Path, names: Iterable[bytes]) -> np.ndarray:
    """Return (height, width) of PNG images of a folder, from the headers alone; made for very many of them.

    Returns:
        (images, 2) in pixels; 0, 0 for what cannot be read or is no such image: ask `image_size` about it.
    """
    root = os.open(folder, os.O_RDONLY)
    try:
        return _sizes_in([_head(root, name) for name in names])
    finally:
        os.close(root)


def _head(root: int, name: bytes) -> bytes:
    # The system calls themselves, from the open folder: a file object and a long path take three times as long.
    try:
        file = os.open(name, os.O_RDONLY, dir_fd=root)
    except OSError:
        return b""
    try:
        return os.read(file, PNG_HEADER.itemsize)
    except OSError:
        return b""
    finally:
        os.close(file)


def _sizes_in(heads: Iterable[bytes]) -> np.ndarray:
    """(files, 2): height and width by the first bytes of each, zeros where they are not those of a PNG file."""
    whole = (head if len(head) == PNG_HEADER.itemsize else bytes(PNG_HEADER.itemsize) for head in heads)
    headers = np.frombuffer(b"".join(whole), PNG_HEADER)
    known = (headers["signature"] == PNG_SIGNATURE) & (headers["chunk"] == b"IHDR")
    return np.stack((headers["height"], headers["width"]), axis=1).astype(np.int64) * known[:, None]


def list_image_names(folder: Path) -> list[str]:
    """Return the names of the images of a folder, sorted; hidden files and other kinds of file are passed over.

    Raises:
        UserError: the folder is missing, cannot be read or holds no image.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"cannot read the image folder {folder}: {error.strerror}") from error
    suffixes = tuple(IMAGE_SUFFIXES)
    names = sorted(name for name in names if name.lower().endswith(suffixes) and not name.startswith("."))
    if not names:
        expected = f"files ending in {' '.join(sorted(IMAGE_SUFFIXES))} are expected there"
        raise UserError(f"no image in {folder}; {expected}{_in_sub_folders(folder)}")
    return names


def _in_sub_folders(root: Path) -> str:
    """Say, behind the sentence that a folder holds no image, which of its sub-folders does; empty if none is found."""
    for folder, sub_folders, names in islice(os.walk(root), FOLDERS_SEARCHED):
        sub_folders[:] = sorted(name for name in sub_folders if not name.startswith("."))
        if any(name.lower().endswith(tuple(IMAGE_SUFFIXES)) and not name.startswith(".") for name in names):
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


def to_tensor(rgb: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))


def to_array(image: Tensor) -> np.ndarray:
    """(3, H, W) uint8 tensor on any device -> (H, W, 3) uint8 array."""
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


def to_float(images: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 -> float32 in [0, 1], on the same device."""
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """(..., 3, H, W) float -> uint8: clamped to [0, 1], scaled to 255 and rounded, on the same device."""
    return (images.float().clamp(0, 1) * 255).round().byte()
