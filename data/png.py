"""PNG files (ISO/IEC 15948) on the byte level: an encoder by strips, a check of checksums, and sizes from headers."""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = np.dtype([("signature", "S8"), ("chunk_bytes", ">u4"), ("chunk", "S4"), ("width", ">u4"), ("height", ">u4")])
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels: grey, grey and alpha, RGB, RGBA
AVERAGE_FILTER = 3  # predicts a byte by the mean of the bytes to the left and above
STRIP_BYTES = 2**22  # of uncompressed pixels


def encode(
    image: np.ndarray, *, alpha: np.ndarray | None = None, icc_profile: bytes | None = None, compression_level: int
) -> Iterator[bytes]:
    """Encode an RGB or grey image, (H, W, 3) or (H, W), uint8 or uint16, as PNG.

    Libraries need memory for a second image: OpenCV encodes the whole file in memory, and Pillow first copies the image
    to 4 bytes per pixel. An image of 32,000 x 32,000 pixels is 3 GB.

    Args:
        alpha: (H, W) of the same type.

    Yields:
        The pieces of the file, one for each strip of rows.
    """
    assert image.dtype in (np.uint8, np.uint16), image.dtype
    height, width = image.shape[:2]
    layers = [image.reshape(height, width, -1)]
    if alpha is not None:
        assert (alpha.dtype, alpha.shape) == (image.dtype, image.shape[:2]), (alpha.dtype, alpha.shape)
        layers.append(alpha[..., None])
    channels = sum(layer.shape[2] for layer in layers)
    pixel_bytes = channels * image.itemsize
    yield SIGNATURE + _chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8 * image.itemsize, COLOUR_TYPES[channels], 0, 0, 0)
    )
    if icc_profile is not None:
        yield _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile))
    compressor = zlib.compressobj(compression_level)
    above = np.zeros((1, pixel_bytes * width), np.uint8)
    rows_per_strip = max(1, STRIP_BYTES // (pixel_bytes * width))
    for top in range(0, height, rows_per_strip):
        strip = np.concatenate([layer[top : top + rows_per_strip] for layer in layers], axis=2)
        big_endian = strip.astype(strip.dtype.newbyteorder(">"), copy=False)
        rows = big_endian.view(np.uint8).reshape(-1, pixel_bytes * width)
        left = np.zeros_like(rows)
        left[:, pixel_bytes:] = rows[:, :-pixel_bytes]
        above = np.concatenate((above, rows))
        mean = (left & above[:-1]) + ((left ^ above[:-1]) >> 1)  # rounded down, without overflow
        filtered = np.full((len(rows), 1 + pixel_bytes * width), AVERAGE_FILTER, np.uint8)
        np.subtract(rows, mean, out=filtered[:, 1:])
        above = above[-1:]
        yield _chunk(b"IDAT", compressor.compress(filtered.data))
    yield _chunk(b"IDAT", compressor.flush()) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def is_intact(path: Path) -> bool:
    """Whether a file is a complete PNG: the CRC-32 of every chunk is right, and the file ends after IEND.

    No pixel is decoded. A file that cannot be read is not intact.
    """
    try:
        content = memoryview(Path(path).read_bytes())
        start, name = len(SIGNATURE), b""
        while name != b"IEND":
            length, name = struct.unpack_from(">I4s", content, start)
            end = start + 8 + length
            (checksum,) = struct.unpack_from(">I", content, end)
            if checksum != zlib.crc32(content[start + 4 : end]):
                return False
            start = end + 4
    except (OSError, struct.error):  # struct.error: the file ends within a chunk
        return False
    return content[: len(SIGNATURE)] == SIGNATURE and start == len(content)


def sizes(folder: Path, names: Iterable[bytes]) -> np.ndarray:
    """Return (height, width) of PNG images of a folder, read from the headers alone; fast for very many images.

    Returns:
        (images, 2) in pixels; (0, 0) for a file that cannot be read or is not PNG: use `images.image_size` for it.
    """
    folder_fd = os.open(folder, os.O_RDONLY)
    try:
        return sizes_from_headers([_read_header(folder_fd, name) for name in names])
    finally:
        os.close(folder_fd)


def sizes_from_headers(headers: Iterable[bytes]) -> np.ndarray:
    """(files, 2): height and width from the first bytes of each file; zeros where they are not those of a PNG file."""
    complete = (header if len(header) == HEADER.itemsize else bytes(HEADER.itemsize) for header in headers)
    fields = np.frombuffer(b"".join(complete), HEADER)
    known = (fields["signature"] == SIGNATURE) & (fields["chunk"] == b"IHDR")
    return np.stack((fields["height"], fields["width"]), axis=1).astype(np.int64) * known[:, None]


def _read_header(folder_fd: int, name: bytes) -> bytes:
    # System calls relative to the open folder: a file object and a long path take three times as long.
    try:
        file = os.open(name, os.O_RDONLY, dir_fd=folder_fd)
    except OSError:
        return b""
    try:
        return os.read(file, HEADER.itemsize)
    except OSError:
        return b""
    finally:
        os.close(file)
