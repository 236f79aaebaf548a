"""Images of DF2K's size for benchmarks, made of whatever photographs are at hand."""

from itertools import cycle, islice
from pathlib import Path

import numpy as np

from sed_sr.data.images import list_images, read_rgb, write_image

HEIGHT_PX, WIDTH_PX = 1356, 2040


def write_mosaics(photographs: Path, output: Path, *, count: int) -> None:
    """Write `count` images of 2040x1356, 0000.png ..., photographs side by side at their own size."""
    paths = cycle(list_images(photographs))
    for number in range(count):
        rows, height = [], 0
        while height < HEIGHT_PX:
            first = read_rgb(next(paths))
            row = [first, *(read_rgb(path) for path in islice(paths, WIDTH_PX // first.shape[1]))]
            low = min(len(image) for image in row)
            row = np.concatenate([image[:low] for image in row], axis=1)
            rows.append(np.pad(row, ((0, 0), (0, max(0, WIDTH_PX - row.shape[1])), (0, 0)), "symmetric")[:, :WIDTH_PX])
            height += low
        write_image(output / f"{number:04d}.png", np.concatenate(rows)[:HEIGHT_PX], compression_level=1)
