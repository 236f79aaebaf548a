"""Folders of very many images: listed once, kept compactly, and looked at before use by many readers."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from sed_sr.data import png
from sed_sr.data.images import image_size, list_image_names, read_rgb
from sed_sr.data.pack import PIXELS_SUFFIX, Pack, Tile, check_pixels, is_pack, open_pack
from sed_sr.data.workers import ignore_stop_signals
from sed_sr.options.errors import UserError

Item = TypeVar("Item")

MIN_SIDE_PX = 32  # a thumbnail or an icon: padded to a training crop it would show little but its reflections
OFFENDERS_SHOWN = 5
READERS = 16  # a disk or a network file system answers many of them at once
MARKED_AT_ONCE = 10_000
TASKS = 10_000  # about, at most: a task for every image of a large set would take more memory than its names


@dataclass(frozen=True)
class ImageFolder:
    """Images of a folder, as a sequence of paths.

    Names are kept as fixed-width byte strings: 800,000 take some 12 MB, and the workers of a data loader share these
    pages, which a list of Python objects would have them copy one by one.
    """

    root: Path
    names: np.ndarray  # (images,) bytes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Path:
        return self.root / os.fsdecode(self.names[index])

    @property
    def files(self) -> ImageFolder:
        """As of a pack."""
        return self

    def select(self, names: Iterable[str]) -> ImageFolder:
        """The images of these names, in the order given."""
        return image_folder(self.root, names)

    def sizes(self, indices: range) -> np.ndarray:
        """Heights and widths of images that follow each other; see `data.png.sizes`."""
        return png.sizes(self.root, self.names[indices.start : indices.stop].tolist())


def image_folder(root: Path, names: Iterable[str]) -> ImageFolder:
    """Keep the names of images of a folder, one or more, in the order given."""
    together = os.fsencode("\0".join(names))  # one name after the other takes five times as long
    return ImageFolder(Path(root), np.array(together.split(b"\0")))


def find_images(root: Path) -> ImageFolder | Pack:
    """List the images of a folder, or the sub-images of a pack, sorted by name.

    Raises:
        UserError: the folder is missing, cannot be read or holds no image, or the pack is unfinished or damaged.
    """
    root = Path(root)
    return open_pack(root) if is_pack(root) else image_folder(root, list_image_names(root))


def image_list(folders: Iterable[ImageFolder | Pack]) -> str:
    """A line for each image: its folder's name and its own."""
    listed = [f"{folder.root.name}/{name}" for folder in folders for name in _texts(folder.names)]
    return "".join(f"{line}\n" for line in listed).encode(errors="backslashreplace").decode()


def read_image(image: Path | Tile) -> np.ndarray:
    """Read what `find_images` lists, as RGB, (H, W, 3) uint8; see `data.images.read_rgb` and `Tile.read`."""
    return image.read() if isinstance(image, Tile) else read_rgb(image)


def size_of(image: Path | Tile) -> tuple[int, int]:
    """Return (height, width) of what `find_images` lists; see `data.images.image_size`."""
    return (image.side_px, image.side_px) if isinstance(image, Tile) else image_size(image)


def check_images(folders: Sequence[ImageFolder | Pack]) -> None:
    """Check from the headers that every image can be trained on: no side is shorter than 32 pixels.

    Raises:
        UserError: some images are smaller, or a header cannot be read; says how many and shows the first.
    """

    def complaint(path: Path | Tile) -> str | None:
        try:
            height, width = size_of(path)
        except UserError as error:
            return str(error)
        if min(height, width) < MIN_SIDE_PX:
            return f"{path} is {width}x{height}, and a side of at least {MIN_SIDE_PX} pixels is expected"
        return None

    def suspects(folder: ImageFolder | Pack) -> list[Path | Tile]:
        def small(indices: range) -> np.ndarray:
            return folder.sizes(indices).min(axis=1) < MIN_SIDE_PX

        return [folder[index] for index in marked(small, len(folder))]

    images = sum(map(len, folders))
    check_each(list(map(suspects, folders)), complaint, what=_images_in(folders, images), fault="cannot be used")


def check_readable(folders: Sequence[ImageFolder | Pack], *, on_image: Callable[[], None] = lambda: None) -> None:
    """Read every file: decode the images of folders, and compare those of packs with their checksums.

    Args:
        on_image: called after each file, from the threads that read.

    Raises:
        UserError: some files cannot be read; says how many and shows the first.
    """

    def complaint(path: Path) -> str | None:
        try:
            (check_pixels if path.suffix == PIXELS_SUFFIX else read_rgb)(path)
        except UserError as error:
            return str(error)
        finally:
            on_image()
        return None

    files = [folder.files for folder in folders]
    check_each(files, complaint, what=_images_in(folders, sum(map(len, files))), fault="cannot be read")


def marked(mark: Callable[[range], np.ndarray], items: int) -> list[int]:
    """Return the indices that `mark` finds among those of very many items; quick marks only, made by processes.

    From memory, a header takes a few microseconds, in which threads would do little but take turns in the interpreter.

    Args:
        mark: for neighbours, given by their indices: (neighbours,) bool.
    """
    tasks = [range(start, min(start + MARKED_AT_ONCE, items)) for start in range(0, items, MARKED_AT_ONCE)]
    if len(tasks) == 1:
        return np.flatnonzero(mark(tasks[0])).tolist()
    fork = multiprocessing.get_context("fork")  # begins at once, with `mark` and the names that it looks up
    with ProcessPoolExecutor(min(READERS, len(tasks)), fork, _start_reader, (mark,)) as executor:
        return np.flatnonzero(np.concatenate(list(executor.map(_reader_marks, tasks)))).tolist()


def _start_reader(mark: Callable[[range], np.ndarray]) -> None:
    global _marks_of_reader
    _marks_of_reader = mark
    ignore_stop_signals()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _reader_marks(indices: range) -> np.ndarray:
    return _marks_of_reader(indices)


def _exit_with_parent() -> None:
    # A reader whose parent was killed would wait for work for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def check_each(
    sequences: Sequence[Sequence[Item]], complaint: Callable[[Item], str | None], *, what: str, fault: str
) -> None:
    """Ask `complaint` about every item of all sequences, in threads: what is wrong with it, or None.

    Args:
        what, fault: of the error's sentence: "2 of <what> <fault>: ...".

    Raises:
        UserError: there were complaints; says how many and shows the first.
    """

    def complaints(task: tuple[Sequence[Item], int]) -> list[str]:
        items, start = task
        found = (complaint(items[index]) for index in range(start, min(start + items_per_task, len(items))))
        return [text for text in found if text]

    items_per_task = 1 + sum(map(len, sequences)) // TASKS
    tasks = [(items, start) for items in sequences for start in range(0, len(items), items_per_task)]
    with ThreadPoolExecutor(READERS) as executor:
        offenders = list(chain.from_iterable(executor.map(complaints, tasks)))
    if offenders:
        raise UserError(f"{len(offenders)} of {what} {fault}: {first_few(offenders, separator='; ')}")


def _texts(names: np.ndarray) -> list[str]:
    return os.fsdecode(b"\0".join(names.tolist())).split("\0")


def first_few(offenders: list[str], *, separator: str = ", ") -> str:
    """Join the first few offenders, and say by an ellipsis that there are more."""
    shown = separator.join(offenders[:OFFENDERS_SHOWN])
    return shown if len(offenders) <= OFFENDERS_SHOWN else f"{shown}{separator}..."


def _images_in(folders: Sequence[ImageFolder | Pack], images: int) -> str:
    return f"{images} images in {' and '.join(str(folder.root) for folder in folders)}"
