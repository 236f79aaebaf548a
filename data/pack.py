"""Packs: the pixels of whole images, uncompressed, and a table of the sub-images in them.

Sub-images of DF2K overlap fourfold, so a pack takes less disk than their PNG files although it is not compressed.
Reading needs no decoding: the files are mapped into memory, which all processes of a machine share, and only the
training crop is copied.

A pack is used in place of a folder of images. It is a folder of `0001_scale1of1.npy` ..., each (H, W, 3) uint8 RGB in
NumPy's format followed by the CRC-32 of the pixels, and the table `tiles.npy`, which is written last: while it is
empty, the pack is unfinished.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Literal

import numpy as np
from numpy.lib import format as npy

from sed_sr.data.files import atomic_writer
from sed_sr.options.errors import UserError

PIXELS_SUFFIX = ".npy"
TABLE = "tiles.npy"
FILE_NAME = rf"(.+_scale\d+of\d+|{TABLE.removesuffix('.npy')})\.npy"
COLUMNS = ("name", "image", "top", "left", "side_px")
CHECKSUM_BYTES = 4
REMEDY = "remove it and make the pack again with --resume"


@dataclass(frozen=True)
class Tile:
    """A sub-image of a pack: a square of an image.

    Args:
        path: the path it would have as a file of its own; no such file exists.
        image_path: file of the image's pixels.
        top, left: its corner in the image.
    """

    path: Path
    image_path: Path
    top: int
    left: int
    side_px: int

    @property
    def name(self) -> str:
        """Like that of a path."""
        return self.path.name

    @property
    def stem(self) -> str:
        """Like that of a path."""
        return self.path.stem

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> np.ndarray:
        """Return the pixels, (side_px, side_px, 3) uint8 RGB: a read-only view of the file.

        Raises:
            UserError: the file is missing or damaged.
        """
        image = _map(self.image_path)
        return image[self.top : self.top + self.side_px, self.left : self.left + self.side_px]


@dataclass(frozen=True)
class Pack:
    """The sub-images of a pack, as a sequence of tiles.

    Args:
        tiles: (sub-images,) structured array of `COLUMNS`: one block of memory, like the names of an `ImageFolder`.
            800,000 rows take some 40 MB.
    """

    root: Path
    tiles: np.ndarray

    @property
    def names(self) -> np.ndarray:
        """(sub-images,) bytes."""
        return self.tiles["name"]

    @property
    def files(self) -> list[Path]:
        """The files that contain the sub-images, each once."""
        return [self.root / os.fsdecode(image) for image in np.unique(self.tiles["image"])]

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> Tile:
        name, image, top, left, side_px = self.tiles[index].item()
        return Tile(self.root / os.fsdecode(name), self.root / os.fsdecode(image), top, left, side_px)

    def select(self, names: Iterable[str]) -> Pack:
        """The sub-images with these names, in the given order."""
        order = np.argsort(self.names)
        wanted = np.array([os.fsencode(name) for name in names])
        return Pack(self.root, self.tiles[order[np.searchsorted(self.names, wanted, sorter=order)]])

    def sizes(self, indices: range) -> np.ndarray:
        """(len(indices), 2): heights and widths of consecutive sub-images, in pixels."""
        return np.repeat(self.tiles["side_px"][indices.start : indices.stop, None], 2, axis=1)


def is_pack(root: Path) -> bool:
    """Whether a folder is a pack, finished or not."""
    return (root / TABLE).exists()


def open_pack(root: Path) -> Pack:
    """Open a pack, and check that every file is as large as the table requires.

    Raises:
        UserError: the pack is unfinished or damaged, or a file is missing.
    """
    tiles = _load(root / TABLE)
    if tiles.dtype.names != COLUMNS:
        raise UserError(f"{root / TABLE} is not a table of sub-images; {REMEDY}")
    if not len(tiles):
        raise UserError(f"the pack {root} is unfinished; run the command that makes it again, with --resume")
    images, image_of_tile = np.unique(tiles["image"], return_inverse=True)
    ends = np.zeros((len(images), 2), int)
    np.maximum.at(ends, image_of_tile, np.stack((tiles["top"], tiles["left"]), axis=1) + tiles["side_px"][:, None])
    for image, end in zip(images, ends, strict=True):
        path = root / os.fsdecode(image)
        if (_map(path).shape[:2] < end).any():
            raise UserError(f"{path} is smaller than {TABLE} requires; {REMEDY}")
    return Pack(root, tiles)


def write_pixels(path: Path, rgb: np.ndarray) -> None:
    """Write the pixels of an image, (H, W, 3) uint8 RGB. The file is not flushed to the disk.

    Raises:
        WriteError: the disk is full, or the file cannot be written for another reason.
    """
    rgb = np.ascontiguousarray(rgb)
    with atomic_writer(path, durable=False) as file:
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(rgb))
        file.write(rgb.data)  # np.save would not report a full disk as such
        file.write(_checksum(rgb))


def check_pixels(path: Path) -> None:
    """Read all pixels of an image and verify their checksum.

    Raises:
        UserError: the checksum is wrong, or the file cannot be read.
    """
    _map(path)
    try:
        with open(path, "rb") as file:
            intact = _checksum(np.load(file)) == file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not intact:
        raise _damaged(path)


def is_intact(path: Path) -> bool:
    """Whether `check_pixels` succeeds."""
    try:
        check_pixels(path)
    except UserError:
        return False
    return True


def write_table(root: Path, tiles: Iterable[tuple[str, str, int, int, int]]) -> None:
    """Write the table of a pack, sorted by name. A table without tiles marks the pack as unfinished.

    The pixels must be flushed to the disk before (`data.files.flush_file_systems`).

    Args:
        tiles: (name, file, top, left, side in pixels) of each sub-image.

    Raises:
        WriteError: the disk is full, or the file cannot be written for another reason.
    """
    rows = [
        (os.fsencode(name), os.fsencode(image), top, left, side_px) for name, image, top, left, side_px in sorted(tiles)
    ]
    name_bytes = max((len(name) for name, *_ in rows), default=1)
    image_bytes = max((len(image) for _, image, *_ in rows), default=1)
    formats = (f"S{name_bytes}", f"S{image_bytes}", "<i4", "<i4", "<i4")
    with atomic_writer(root / TABLE) as file:
        np.save(file, np.array(rows, list(zip(COLUMNS, formats, strict=True))))


def _map(path: Path) -> np.ndarray:
    pixels = _load(path, mmap_mode="r")
    assert isinstance(pixels, np.memmap)
    if path.stat().st_size != pixels.offset + pixels.nbytes + CHECKSUM_BYTES:
        raise _damaged(path)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(f"{path} does not hold an 8-bit RGB image; {REMEDY}")
    return np.asarray(pixels)


def _load(path: Path, *, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mmap_mode)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, SyntaxError, TokenError) as error:  # a broken header, or fewer bytes than it declares
        raise _damaged(path) from error


def _checksum(pixels: np.ndarray) -> bytes:
    return zlib.crc32(pixels.data).to_bytes(CHECKSUM_BYTES, "little")


def _damaged(path: Path) -> UserError:
    return UserError(f"cannot read {path}: it is damaged; {REMEDY}")
