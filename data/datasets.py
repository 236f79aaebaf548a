"""The training sets: pairs of HR and LR images, or HR images alone.

Every random choice derives from (seed, epoch, index), never from a worker, a rank or earlier samples. So the number of
samples seen is all that a resumed run needs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import Dataset

from sed_sr.data.image_folders import ImageFolder, check_images, find_images, read_image
from sed_sr.data.pack import Pack, Tile
from sed_sr.data.pairs import check_pairs, find_pairs
from sed_sr.data.tensors import to_tensor
from sed_sr.options.errors import UserError

AUGMENTATIONS = 8


class PairedImages(Dataset):
    """Aligned random crops of HR images and their LR images, flipped and turned in 8 ways.

    Args:
        hr_root, lr_root: folders of images, or packs, that pair by name (`find_pairs`) and by size (`check_pairs`).
        scale: HR side / LR side.
        lr_patch_px: side p of the LR crop.
        augment: whether to flip and turn.
        seed: of crops and augmentations, not negative.

    Raises:
        UserError: the folders do not pair, or an image is too small.
    """

    def __init__(
        self, hr_root: Path, lr_root: Path, *, scale: int, lr_patch_px: int, augment: bool = True, seed: int = 1
    ) -> None:
        self.pairs = find_pairs(hr_root, lr_root)
        check_pairs(self.pairs, scale=scale, lr_patch_px=lr_patch_px)
        self.scale = scale
        self.lr_patch_px = lr_patch_px
        self.augment = augment
        self.seed = seed

    @property
    def folders(self) -> tuple[ImageFolder | Pack, ...]:
        """The folders it reads from."""
        return self.pairs.hr, self.pairs.lr

    @property
    def hr_folders(self) -> tuple[ImageFolder | Pack, ...]:
        """Those of HR images."""
        return (self.pairs.hr,)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the sample of key (epoch, index).

        Returns:
            lr: (3, p, p) uint8 RGB. hr: (3, scale * p, scale * p) uint8 RGB. name: the HR image's stem.

        Raises:
            UserError: an image cannot be read, or is smaller than it was when the data set was made.
        """
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        hr_path, lr_path = self.pairs[index]
        hr, lr = read_image(hr_path), read_image(lr_path)
        # An LR image of ceil(HR / scale) has a last row or column without a whole HR counterpart.
        free = [min(lr.shape[axis], hr.shape[axis] // self.scale) - self.lr_patch_px for axis in (0, 1)]
        if min(free) < 0:
            raise UserError(f"{hr_path} or {lr_path} became smaller than the patch while the data set was in use")
        top, left = (int(rng.integers(room + 1)) for room in free)
        way = _draw_way(rng) if self.augment else 0
        return {
            "lr": to_tensor(turn(crop(lr, top, left, size_px=self.lr_patch_px), way)),
            "hr": to_tensor(
                turn(crop(hr, top * self.scale, left * self.scale, size_px=self.lr_patch_px * self.scale), way)
            ),
            "name": hr_path.stem,
        }


class HRImages(Dataset):
    """Random crops of HR images of several folders, flipped and turned in 8 ways; LR is made of them later.

    A folder of n images with weight w has round(w * n) samples in every epoch, at least one. They go round the folder
    in one shuffled order, each epoch from where the one before ended: with weight 0.1 every image is seen once in ten
    epochs, with weight 2 twice in each.

    Args:
        roots: folders of images, or packs, with their weights: how often an image of the folder is seen compared with
            an image of weight 1. Positive.
        hr_px: side p of the crop. Smaller images are padded by reflection.
        augment: whether to flip and turn.
        seed: of orders, crops and augmentations, not negative.

    Raises:
        UserError: a folder is missing or empty, or an image cannot be used (`check_images`).
    """

    def __init__(self, roots: Mapping[Path, float], *, hr_px: int, augment: bool = True, seed: int = 1) -> None:
        assert roots
        assert min(roots.values()) > 0, roots
        self.folders = tuple(find_images(root) for root in roots)
        check_images(self.folders)
        self.hr_px = hr_px
        self.augment = augment
        self.seed = seed
        self._samples = [
            max(1, round(weight * len(folder))) for folder, weight in zip(self.folders, roots.values(), strict=True)
        ]
        # Four numbers, the last above 0: no sample and no epoch of a SampleStream has such a seed.
        self._orders = [
            np.random.default_rng([seed, 0, 0, number]).permutation(len(folder))
            for number, folder in enumerate(self.folders, 1)
        ]

    @property
    def hr_folders(self) -> tuple[ImageFolder | Pack, ...]:
        """Those of HR images: all of them."""
        return self.folders

    def __len__(self) -> int:
        """The number of samples of an epoch; not of images, which weights show more or less often."""
        return sum(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the sample of key (epoch, index).

        Returns:
            hr: (3, p, p) uint8 RGB. name: the image's stem.

        Raises:
            UserError: the image cannot be read.
        """
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        source = self._image(epoch, index)
        image = _pad(read_image(source), self.hr_px)
        top, left = (int(rng.integers(side - self.hr_px + 1)) for side in image.shape[:2])
        way = _draw_way(rng) if self.augment else 0
        return {"hr": to_tensor(turn(crop(image, top, left, size_px=self.hr_px), way)), "name": source.stem}

    def _image(self, epoch: int, index: int) -> Path | Tile:
        for folder, samples, order in zip(self.folders, self._samples, self._orders, strict=True):
            if index < samples:
                return folder[order[(epoch * samples + index) % len(folder)]]
            index -= samples
        raise IndexError(index)


def crop(image: np.ndarray, top: int, left: int, *, size_px: int) -> np.ndarray:
    """Return a view of the square with corner (top, left)."""
    return image[top : top + size_px, left : left + size_px]


def turn(image: np.ndarray, way: int) -> np.ndarray:
    """Return a view of an image (H, W, C) in one of the 8 symmetries of the square; way 0 is the image itself.

    The bits of `way` say whether it is flipped up-down, flipped left-right and transposed: two flips are half a turn,
    a flip and a transposition a quarter.
    """
    if way & 1:
        image = image[::-1]
    if way & 2:
        image = image[:, ::-1]
    if way & 4:
        image = image.transpose(1, 0, 2)
    return image


def _draw_way(rng: np.random.Generator) -> int:
    return int(rng.integers(AUGMENTATIONS))


def _pad(image: np.ndarray, size_px: int) -> np.ndarray:
    """Reflect a small image beyond its lower and right edge until both sides are at least `size_px` long."""
    down, right = (max(0, size_px - side) for side in image.shape[:2])
    # Real-ESRGAN's border. It reflects again and again where an image is less than half as large.
    return cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REFLECT_101)
