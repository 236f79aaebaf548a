"""Folders of very many images: listed once, kept compactly, and looked at before use by many threads."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from data.images import image_size, list_image_names, read_rgb
from utils.errors import UserError

Item = TypeVar("Item")

MIN_SIDE_PX = 32  # a thumbnail or an icon: padded to a training crop it would show little but its reflections
OFFENDERS_SHOWN = 5
READERS = 16  # threads; a network file system answers many of them at once
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


def image_folder(root: Path, names: Iterable[str]) -> ImageFolder:
    """Keep the names of images of a folder, in the order given."""
    return ImageFolder(Path(root), np.array([os.fsencode(name) for name in names]))


def find_images(root: Path) -> ImageFolder:
    """List the images of a folder, sorted by name.

    Raises:
        UserError: the folder is missing, cannot be read or holds no image.
    """
    return image_folder(root, list_image_names(root))


def check_images(folders: Sequence[ImageFolder]) -> None:
    """Check from the headers that every image can be trained on: no side is shorter than 32 pixels.

    Raises:
        UserError: some images are smaller, or a header cannot be read; says how many and shows the first.
    """

    def complaint(path: Path) -> str | None:
        try:
            height, width = image_size(path)
        except UserError as error:
            return str(error)
        if min(height, width) < MIN_SIDE_PX:
            return f"{path} is {width}x{height}, and a side of at least {MIN_SIDE_PX} pixels is expected"
        return None

    check_each(folders, complaint, what=_images_in(folders), fault="cannot be used")


def check_readable(folders: Sequence[ImageFolder], *, on_image: Callable[[], None] = lambda: None) -> None:
    """Decode every image.

    Args:
        on_image: called after each image, from the threads that read.

    Raises:
        UserError: some images cannot be read; says how many and shows the first.
    """

    def complaint(path: Path) -> str | None:
        try:
            read_rgb(path)
        except UserError as error:
            return str(error)
        finally:
            on_image()
        return None

    check_each(folders, complaint, what=_images_in(folders), fault="cannot be read")


def check_each(
    sequences: Sequence[Sequence[Item]], complaint: Callable[[Item], str | None], *, what: str, fault: str
) -> None:
    """Ask `complaint` about every item of all sequences, in threads: what is wrong with it, or None.

    Args:
        what, fault: of the error's sentence: "2 of 9 <what> <fault>: ...".

    Raises:
        UserError: there were complaints; says how many and shows the first.
    """

    def complaints(task: tuple[Sequence[Item], int]) -> list[str]:
        items, start = task
        found = (complaint(items[index]) for index in range(start, min(start + items_per_task, len(items))))
        return [text for text in found if text]

    total = sum(map(len, sequences))
    items_per_task = -(-total // TASKS)
    tasks = [(items, start) for items in sequences for start in range(0, len(items), items_per_task)]
    with ThreadPoolExecutor(READERS) as executor:
        offenders = list(chain.from_iterable(executor.map(complaints, tasks)))
    if offenders:
        raise UserError(f"{len(offenders)} of {total} {what} {fault}: {first_few(offenders, separator='; ')}")


def first_few(offenders: list[str], *, separator: str = ", ") -> str:
    """Join the first few offenders, and say by an ellipsis that there are more."""
    shown = separator.join(offenders[:OFFENDERS_SHOWN])
    return shown if len(offenders) <= OFFENDERS_SHOWN else f"{shown}{separator}..."


def _images_in(folders: Sequence[ImageFolder]) -> str:
    return f"images in {' and '.join(str(folder.root) for folder in folders)}"
