"""The training sets, paired or of HR images alone, the stream of samples that a run sees, and the loader of both.

Every random choice derives from (seed, epoch, index), never from a worker, a rank or what came before. So the number of
samples seen is all that a run needs to go on where it stopped.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from sed_sr.data.image_folders import ImageFolder, check_images, find_images, read_image
from sed_sr.data.images import to_tensor
from sed_sr.data.pack import Pack, Tile
from sed_sr.data.pairs import check_pairs, find_pairs
from sed_sr.data.workers import ignore_stop_signals
from sed_sr.options.errors import UserError

AUGMENTATIONS = 8
BATCHES_AHEAD = 4  # per worker


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


class SampleStream(Sampler):
    """Batches of keys (epoch, index) from one endless stream: a permutation of the set for every epoch, end to end.

    Sample k of the stream is of epoch k // length. Batch b of all ranks together starts at sample
    first_sample + b * world_size * batch_size, and rank r takes the r-th slice of it. So nothing is dropped, a set
    smaller than a batch repeats, and 2 ranks of 2 see together what 1 rank of 4 sees.

    Args:
        length: number of samples in the set.
        batch_size: samples per batch and rank.
        batches: how many batches to yield.
        rank, world_size: this process among all.
        seed: of the permutations, not negative.
        first_sample: where the stream begins: the number of samples that a resumed run has seen on all ranks.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        batches: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 1,
        first_sample: int = 0,
    ) -> None:
        assert length > 0
        assert 0 <= rank < world_size
        self.length = length
        self.batch_size = batch_size
        self.batches = batches
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.first_sample = first_sample

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.keys(range(self.batches))

    def keys(self, batches: Iterable[int]) -> Iterator[list[tuple[int, int]]]:
        """The keys of these batches, counted from 0."""
        current_epoch, order = None, None
        for batch in batches:
            start = self.first_sample + (batch * self.world_size + self.rank) * self.batch_size
            keys = []
            for sample in range(start, start + self.batch_size):
                epoch, place = divmod(sample, self.length)
                if epoch != current_epoch:
                    current_epoch, order = epoch, self._permutation(epoch)
                keys.append((epoch, int(order[place])))
            yield keys

    def _permutation(self, epoch: int) -> np.ndarray:
        # numpy pads the seed with zeros: without a third number, image 0 would draw its crop from the same generator.
        # No image has the index `length`.
        return np.random.default_rng([self.seed, epoch, self.length]).permutation(self.length)


class Loader:
    """Batches of a data set along a stream, read by worker processes; see `make_loader`."""

    def __init__(self, batches: DataLoader) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = iter(self._batches)
        try:
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        finally:
            # The workers end now. At the interpreter's end, an exception that holds on to them would keep them alive.
            del batches


def make_loader(dataset: Dataset, stream: Iterable[list], *, num_workers: int, device_type: str) -> Loader:
    """Load the samples of a stream.

    Args:
        dataset: maps a key (epoch, index) to a dict of tensors and strings.
        stream: yields the keys of a batch: a SampleStream, or a list of such lists.
        num_workers: processes; 0 loads in this one.
        device_type: "cuda" puts batches into pinned memory, from which they are copied to the GPU asynchronously.

    Returns:
        Yields the samples' dicts with stacked tensors and lists of strings. Iterating raises the UserError that reading
        an image raised, in whichever process.
    """
    loader = DataLoader(
        _ErrorsAsSamples(dataset),
        batch_sampler=stream,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=device_type == "cuda",
        prefetch_factor=BATCHES_AHEAD if num_workers else None,
        worker_init_fn=_start_worker,
        # Of its own: starting the workers draws a number, which must not shift the model's random numbers.
        generator=torch.Generator(),
    )
    return Loader(loader)


class _ErrorsAsSamples(Dataset):
    # An exception that leaves a worker arrives with the worker's traceback as its message; returned, it stays itself.
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any] | UserError:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


def _collate(samples: list[dict[str, Any] | UserError]) -> dict[str, Any] | UserError:
    errors = (sample for sample in samples if isinstance(sample, UserError))
    return next(errors, None) or default_collate(samples)


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers use the cores already
    ignore_stop_signals()
    sys.excepthook = _tell_unless_left_alone


def _tell_unless_left_alone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    # The thread that hands tensors over would complain of a main process that leaves in the midst of taking one.
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)
