"""Images whose pixels say where they are, so that a test can read off which part of which image it got."""

from pathlib import Path

import numpy as np
import pytest

from sed_sr.data.images import write_image


@pytest.fixture
def coordinate_image():
    """coordinate_image(height, width): (H, W, 3) uint8 with row, column and 128 + their high bits as channels."""

    def make(height: int, width: int) -> np.ndarray:
        rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        return np.stack([rows % 256, columns % 256, rows // 256 * 16 + columns // 256], axis=-1).astype(np.uint8)

    return make


@pytest.fixture
def write_pair(coordinate_image):
    """write_pair(root, stem, lr_size): an LR image of coordinates, and an HR image with every LR pixel as a 4x4 block.

    So a crop of the HR image and a crop of the LR image belong together exactly when HR[::4, ::4] == LR.
    """

    def write(root: Path, stem: str, lr_size: tuple[int, int], *, hr_extra: tuple[int, int] = (0, 0)) -> None:
        lr = coordinate_image(*lr_size)
        hr = lr.repeat(4, axis=0).repeat(4, axis=1)
        # Rows and columns at the end that no LR pixel stands for.
        hr = np.pad(hr, ((0, hr_extra[0]), (0, hr_extra[1]), (0, 0)), constant_values=255)
        for folder, name, image in (("hr", f"{stem}.png", hr), ("lr_x4", f"{stem}x4.png", lr)):
            (root / folder).mkdir(exist_ok=True)
            write_image(root / folder / name, image)

    return write
