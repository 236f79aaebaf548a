"""Folders of very many images: they are listed once, stored compactly, and checked in parallel before use."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from sed_sr.data import png
from sed_sr.data.images import image_size, list_image_names, read_rgb
from sed_sr.data.pack import PIXELS_SUFFIX, Pack, Tile, check_pixels, is_pack, open_pack
from sed_sr.data.workers import exit_with_parent, ignore_stop_signals
from sed_sr.options.errors import UserError

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)

MIN_SIDE_PX = 32  # a smaller image, padded to a training crop, would show little but its reflections
MAX_SHOWN = 5  # texts of `first_few` in an error message
READERS = 16  # disks and network file systems serve many requests at once
IMAGES_PER_TASK = 10_000  # of `find_marked`
MAX_TASKS = 10_000  # of `check_each`; one for every image of a large set would take more memory than the names


class Items(Protocol[Item_co]):
    """A sequence of which only the length and single items are needed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item_co: ...


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, as a sequence of paths.

    Names are stored as one array of fixed-width byte strings: 800,000 take some 12 MB, and the workers of a data loader
    share this memory. A list of Python objects would be copied by each of them.
    """

    root: Path
    names: np.ndarray  # (images,) bytes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:
        return self.root / os.fsdecode(self.names[index])

    @property
    def files(self) -> ImageFolder:
        """The files to read, like `Pack.files`."""
        return self

    def select(self, names: Iterable[str]) -> ImageFolder:
        """The images with these names, in the given order."""
        return image_folder(self.root, names)

    def sizes(self, indices: range) -> np.ndarray:
        """Heights and widths of consecutive images; see `data.png.sizes`."""
        return png.sizes(self.root, self.names[indices.start : indices.stop].tolist())


def image_folder(root: Path, names: Iterable[str]) -> ImageFolder:
    """An ImageFolder of at least one name, in the given order."""
    encoded = os.fsencode("\0".join(names))  # encoding each name by itself takes five times as long
    return ImageFolder(Path(root), np.array(encoded.split(b"\0")))


def find_images(root: Path) -> ImageFolder | Pack:
    """List the images of a folder, or the sub-images of a pack, sorted by name.

    Raises:
        UserError: the folder is missing, cannot be read or holds no image, or the pack is unfinished or damaged.
    """
    root = Path(root)
    return open_pack(root) if is_pack(root) else image_folder(root, list_image_names(root))


def image_list(folders: Iterable[ImageFolder | Pack]) -> str:
    """One line for each image: the name of its folder and its own."""
    listed = [f"{folder.root.name}/{name}" for folder in folders for name in decode_names(folder.names)]
    return "".join(f"{line}\n" for line in listed).encode(errors="backslashreplace").decode()


def read_image(image: Path | Tile) -> np.ndarray:
    """Read an item of `find_images` as RGB, (H, W, 3) uint8; see `data.images.read_rgb` and `Tile.read`."""
    return image.read() if isinstance(image, Tile) else read_rgb(image)


def size_of(image: Path | Tile) -> tuple[int, int]:
    """Return (height, width) of an item of `find_images`; see `data.images.image_size`."""
    return (image.side_px, image.side_px) if isinstance(image, Tile) else image_size(image)


def check_images(folders: Sequence[ImageFolder | Pack], *, patch_px: int | None = None) -> None:
    """Check from the headers that no side of an image is shorter than `patch_px`, or else than 32 pixels.

    Raises:
        UserError: some images are smaller, or a header cannot be read; gives their number and the first few.
    """

    min_px = MIN_SIDE_PX if patch_px is None else patch_px
    smaller = f"smaller than {'' if patch_px is None else 'the HR patch of '}{min_px}x{min_px}"

    def find_problem(path: Path | Tile) -> str | None:
        try:
            height, width = size_of(path)
        except UserError as error:
            return str(error)
        if min(height, width) < min_px:
            return f"{path} is {width}x{height}, {smaller}"
        return None

    def candidates(folder: ImageFolder | Pack) -> list[Path | Tile]:
        def small(indices: range) -> np.ndarray:
            return folder.sizes(indices).min(axis=1) < min_px

        return [folder[index] for index in find_marked(small, len(folder))]

    images = sum(map(len, folders))
    check_each(list(map(candidates, folders)), find_problem, what=_images_in(folders, images), fault="cannot be used")


def check_readable(folders: Sequence[ImageFolder | Pack], *, on_image: Callable[[], object] = lambda: None) -> None:
    """Read every file: decode the images of folders, and verify the checksums of packs.

    Args:
        on_image: called after each file, from the reading threads.

    Raises:
        UserError: some files cannot be read; gives their number and the first few.
    """

    def find_problem(path: Path) -> str | None:
        try:
            (check_pixels if path.suffix == PIXELS_SUFFIX else read_rgb)(path)
        except UserError as error:
            return str(error)
        finally:
            on_image()
        return None

    files = [folder.files for folder in folders]
    check_each(files, find_problem, what=_images_in(folders, sum(map(len, files))), fault="cannot be read")


def find_marked(mark: Callable[[range], np.ndarray], items: int) -> list[int]:
    """Return the indices of the items that `mark` marks, among very many. It runs in several processes.

    Reading a cached header takes a few microseconds, so threads would mostly wait for the interpreter lock.

    Args:
        mark: range of indices -> (indices,) bool.
    """
    tasks = [range(start, min(start + IMAGES_PER_TASK, items)) for start in range(0, items, IMAGES_PER_TASK)]
    if len(tasks) == 1:
        return np.flatnonzero(mark(tasks[0])).tolist()
    fork = multiprocessing.get_context("fork")  # starts fast, and shares `mark` and the names it refers to
    with ProcessPoolExecutor(min(READERS, len(tasks)), fork, _start_reader, (mark,)) as executor:
        return np.flatnonzero(np.concatenate(list(executor.map(_mark_in_reader, tasks)))).tolist()


def _start_reader(mark: Callable[[range], np.ndarray]) -> None:
    global _reader_mark
    _reader_mark = mark
    ignore_stop_signals()
    exit_with_parent()


def _mark_in_reader(indices: range) -> np.ndarray:
    return _reader_mark(indices)


def check_each(
    sequences: Sequence[Items[Item]], find_problem: Callable[[Item], str | None], *, what: str, fault: str
) -> None:
    """Check every item of all sequences, in threads.

    Args:
        find_problem: returns what is wrong with an item, or None.
        what, fault: parts of the error message: "2 of <what> <fault>: ...".

    Raises:
        UserError: there were problems; gives their number and the first few.
    """

    def find_problems(task: tuple[Items[Item], int]) -> list[str]:
        items, start = task
        found = (find_problem(items[index]) for index in range(start, min(start + items_per_task, len(items))))
        return [text for text in found if text]

    items_per_task = 1 + sum(map(len, sequences)) // MAX_TASKS
    tasks = [(items, start) for items in sequences for start in range(0, len(items), items_per_task)]
    with ThreadPoolExecutor(READERS) as executor:
        problems = list(chain.from_iterable(executor.map(find_problems, tasks)))
    if problems:
        raise UserError(f"{len(problems)} of {what} {fault}: {first_few(problems, separator='; ')}")


def decode_names(names: np.ndarray) -> list[str]:
    """(images,) bytes -> names as text."""
    return os.fsdecode(b"\0".join(names.tolist())).split("\0")


def first_few(texts: list[str], *, separator: str = ", ") -> str:
    """Join the first few texts; an ellipsis stands for further ones."""
    shown = separator.join(texts[:MAX_SHOWN])
    return shown if len(texts) <= MAX_SHOWN else f"{shown}{separator}..."


def _images_in(folders: Sequence[ImageFolder | Pack], images: int) -> str:
    return f"{images} images in {' and '.join(str(folder.root) for folder in folders)}"
