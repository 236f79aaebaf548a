"""The training sets: pairs of HR and LR images, or HR images alone, from which LR is made on the device.

Every random choice derives from (seed, epoch, index), never from a worker, a rank or earlier samples. So the number of
samples seen is all that a resumed run needs.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from sed_sr.data.image_folders import ImageFolder, check_images, find_images, read_image
from sed_sr.data.imresize import MARGIN_PX
from sed_sr.data.pack import Pack, Tile
from sed_sr.data.pairs import check_pairs, find_pairs
from sed_sr.data.tensors import to_tensor
from sed_sr.options.errors import UserError

# The orientations that an augmentation draws from, as bits: 1 flips up-down, 2 flips left-right, then 4 transposes.
ORIENTATIONS = {
    frozenset(): (0,),
    frozenset({"flip"}): (0, 2),
    frozenset({"rotate"}): (0, 3, 5, 6),
    frozenset({"flip", "rotate"}): tuple(range(8)),  # the symmetries of the square
}


class PairedImages(Dataset):
    """Aligned random crops of HR images and their LR images, in a random orientation.

    Args:
        hr_root, lr_root: folders of images, or packs, which pair by name (`find_pairs`) and by size (`check_pairs`).
        scale: HR side / LR side.
        lr_patch_px: side p of the LR crop.
        augment: which of `flip` and `rotate` to do at random (`ORIENTATIONS`).
        seed: of crops and augmentations, not negative.

    Raises:
        UserError: the folders do not pair, or an image is too small.
    """

    def __init__(
        self,
        hr_root: Path,
        lr_root: Path,
        *,
        scale: int,
        lr_patch_px: int,
        augment: Collection[str] = ("flip", "rotate"),
        seed: int = 1,
    ) -> None:
        self.pairs = find_pairs(hr_root, lr_root)
        check_pairs(self.pairs, scale=scale, lr_patch_px=lr_patch_px)
        self.scale = scale
        self.lr_patch_px = lr_patch_px
        self.orientations = ORIENTATIONS[frozenset(augment)]
        self.seed = seed

    @property
    def folders(self) -> tuple[ImageFolder | Pack, ...]:
        """The folders it reads."""
        return self.pairs.hr, self.pairs.lr

    @property
    def hr_folders(self) -> tuple[ImageFolder | Pack, ...]:
        """The folders of HR images."""
        return (self.pairs.hr,)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the sample of a key (epoch, index).

        Returns:
            lr: (3, p, p) uint8 RGB. hr: (3, scale * p, scale * p) uint8 RGB. name: the HR image's stem.

        Raises:
            UserError: an image cannot be read, or became smaller after the data set was checked.
        """
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        hr_path, lr_path = self.pairs[index]
        hr, lr = read_image(hr_path), read_image(lr_path)
        # In an LR image of ceil(HR / scale) the last row or column has no complete HR counterpart.
        free = [min(lr.shape[axis], hr.shape[axis] // self.scale) - self.lr_patch_px for axis in (0, 1)]
        if min(free) < 0:
            raise UserError(f"{hr_path} or {lr_path} is now smaller than the patch; it changed during the run")
        top, left = (int(rng.integers(px + 1)) for px in free)
        orientation = _draw_orientation(rng, self.orientations)
        px, scale = self.lr_patch_px, self.scale
        return {
            "lr": _patch(lr, (top, left), size_px=px, orientation=orientation),
            "hr": _patch(hr, (top * scale, left * scale), size_px=px * scale, orientation=orientation),
            "name": hr_path.stem,
        }


class WeightedFolders:
    """The images of several folders, each as often as the weight of its folder says.

    A folder of n images with weight w has round(w * n) samples in every epoch, at least one. They are taken in one
    shuffled order, and each epoch continues where the last one ended: with weight 0.1 every image is seen once in ten
    epochs, with weight 2 twice in each.

    Args:
        roots: folders of images, or packs, with their weights, which are positive: how often an image of the folder is
            seen, relative to an image of weight 1.
        seed: of the orders, not negative.

    Raises:
        UserError: a folder is missing or empty.
    """

    def __init__(self, roots: Mapping[Path, float], *, seed: int) -> None:
        assert roots
        assert min(roots.values()) > 0, roots
        self.folders = tuple(find_images(root) for root in roots)
        self._samples = [
            max(1, round(weight * len(folder))) for folder, weight in zip(self.folders, roots.values(), strict=True)
        ]
        # Seeds of four numbers, the last above 0, so that they differ from those of samples and of SampleStream.
        self._orders = [
            np.random.default_rng([seed, 0, 0, number]).permutation(len(folder))
            for number, folder in enumerate(self.folders, 1)
        ]

    def __len__(self) -> int:
        """The number of samples in an epoch, which differs from the number of images where weights differ from 1."""
        return sum(self._samples)

    def __getitem__(self, key: tuple[int, int]) -> Path | Tile:
        """The image of a key (epoch, index)."""
        epoch, index = key
        for folder, samples, order in zip(self.folders, self._samples, self._orders, strict=True):
            if index < samples:
                return folder[order[(epoch * samples + index) % len(folder)]]
            index -= samples
        raise IndexError(key)


class HRImages(Dataset):
    """Random crops of HR images of several folders, in a random orientation, to be degraded.

    Args:
        roots: folders of images, or packs, with their weights (`WeightedFolders`).
        hr_px: side p of the crop. Smaller images are padded by reflection.
        augment: which of `flip` and `rotate` to do at random (`ORIENTATIONS`).
        seed: of orders, crops and augmentations, not negative.

    Raises:
        UserError: a folder is missing or empty, or an image cannot be used (`check_images`).
    """

    def __init__(
        self, roots: Mapping[Path, float], *, hr_px: int, augment: Collection[str] = ("flip", "rotate"), seed: int = 1
    ) -> None:
        self.images = WeightedFolders(roots, seed=seed)
        self.folders = self.hr_folders = self.images.folders
        check_images(self.folders)
        self.hr_px = hr_px
        self.orientations = ORIENTATIONS[frozenset(augment)]
        self.seed = seed

    def __len__(self) -> int:
        """The number of samples in an epoch."""
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the sample of a key (epoch, index).

        Returns:
            hr: (3, p, p) uint8 RGB. name: the image's stem.

        Raises:
            UserError: the image cannot be read.
        """
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        source = self.images[key]
        image = _pad(read_image(source), self.hr_px)
        top, left = (int(rng.integers(side - self.hr_px + 1)) for side in image.shape[:2])
        orientation = _draw_orientation(rng, self.orientations)
        return {"hr": _patch(image, (top, left), size_px=self.hr_px, orientation=orientation), "name": source.stem}


class HRPatches(Dataset):
    """Random crops of HR images of several folders, in a random orientation, to be shrunk.

    Every crop has a margin, with which LR equals a crop of the whole image shrunk by `data.imresize`, after the image
    was cut to a multiple of the scale. `PairedImages` of such LR images takes the same crops for the same seed.

    Args:
        roots: folders of images, or packs, with their weights (`WeightedFolders`).
        scale: HR side / LR side.
        lr_patch_px: side p of the LR crop.
        augment: which of `flip` and `rotate` to do at random (`ORIENTATIONS`).
        seed: of orders, crops and augmentations, not negative.

    Raises:
        UserError: a folder is missing or empty, or an image is smaller than the crop or cannot be read.
    """

    def __init__(
        self,
        roots: Mapping[Path, float],
        *,
        scale: int,
        lr_patch_px: int,
        augment: Collection[str] = ("flip", "rotate"),
        seed: int = 1,
    ) -> None:
        self.images = WeightedFolders(roots, seed=seed)
        self.folders = self.hr_folders = self.images.folders
        check_images(self.folders, patch_px=scale * lr_patch_px)
        self.scale = scale
        self.lr_patch_px = lr_patch_px
        self.orientations = ORIENTATIONS[frozenset(augment)]
        self.seed = seed

    def __len__(self) -> int:
        """The number of samples in an epoch."""
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Return the sample of a key (epoch, index).

        Returns:
            hr: (3, P, P) uint8 RGB, P = scale * (p + 2 MARGIN_PX). name: the image's stem.

        Raises:
            UserError: the image cannot be read, or became smaller after the data set was checked.
        """
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        source = self.images[key]
        image = read_image(source)
        lr_sides = [side // self.scale for side in image.shape[:2]]
        free = [side - self.lr_patch_px for side in lr_sides]
        if min(free) < 0:
            raise UserError(f"{source} is now smaller than the patch; it changed during the run")
        corner = tuple(self.scale * int(rng.integers(px + 1)) for px in free)
        orientation = _draw_orientation(rng, self.orientations)
        height, width = (self.scale * side for side in lr_sides)
        size_px, margin_px = self.scale * self.lr_patch_px, self.scale * MARGIN_PX
        patch = _with_margin(image[:height, :width], corner, size_px=size_px, margin_px=margin_px)
        return {"hr": _turned(patch, orientation), "name": source.stem}


TrainingSet = PairedImages | HRImages | HRPatches


def _patch(image: np.ndarray, corner: tuple[int, int], *, size_px: int, orientation: int) -> Tensor:
    """The square of an image (H, W, 3) with this upper left corner, as (3, size_px, size_px)."""
    top, left = corner
    return _turned(image[top : top + size_px, left : left + size_px], orientation)


def _turned(patch: np.ndarray, orientation: int) -> Tensor:
    """A square (p, p, 3) in an orientation, a number of `ORIENTATIONS`, as (3, p, p)."""
    if orientation & 1:
        patch = patch[::-1]
    if orientation & 2:
        patch = patch[:, ::-1]
    if orientation & 4:
        patch = patch.transpose(1, 0, 2)
    return to_tensor(patch)


def _draw_orientation(rng: np.random.Generator, orientations: Sequence[int]) -> int:
    return orientations[int(rng.integers(len(orientations)))]


def _pad(image: np.ndarray, size_px: int) -> np.ndarray:
    """Pad a small image by reflection at the bottom and the right until both sides are at least `size_px` long."""
    down, right = (max(0, size_px - side) for side in image.shape[:2])
    # The border mode of Real-ESRGAN. It reflects repeatedly where an image is less than half as large.
    return cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REFLECT_101)


def _with_margin(image: np.ndarray, corner: tuple[int, ...], *, size_px: int, margin_px: int) -> np.ndarray:
    """The square of an image with this upper left corner and what is around it, (size_px + 2 margin_px,) * 2.

    Beyond its edges the image is mirrored with the edge pixel repeated, as `data.imresize` does.
    """
    (top, bottom), (left, right) = ((start - margin_px, start + size_px + margin_px) for start in corner)
    inside = image[max(0, top) : bottom, max(0, left) : right]
    beyond = (max(0, -top), max(0, bottom - image.shape[0]), max(0, -left), max(0, right - image.shape[1]))
    return cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_REFLECT)
