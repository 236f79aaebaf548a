"""What `test.py` compares: weights of generators, and bicubic interpolation, each under a label."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from models.build import load_generator
from utils.errors import UserError
from utils.generator_file import open_generator_file
from utils.paper_scores import PAPER
from utils.upscaler import Upscale, bicubic
from utils.weights import locate

BICUBIC = "bicubic"
SCALE = 4  # of every generator of this project
LABEL = re.compile(r"\w[\w+.()-]{0,99}")  # labels are names of folders
STRANGE = re.compile(r"[^\w+.()-]")  # in the name of a file that gives its label


@dataclass(frozen=True)
class Entry:
    """Weights as they were asked for."""

    source: str  # a file, or `bicubic`
    label: str | None = None  # None: the file's own name for itself

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """Read FILE or LABEL=FILE. Raises UserError where the label cannot be a folder's name."""
        label, equals, source = text.partition("=")
        if not equals or Path(text).exists():
            return cls(text)
        if not LABEL.fullmatch(label):
            raise UserError(f"the label in --weights {text} should be letters, digits, and . _ + - ( )")
        return cls(source, label)


@dataclass(frozen=True)
class Contestant:
    """One of those compared, ready to upscale."""

    label: str
    source: str  # a path, or `bicubic`
    about: str  # what it is, for people
    paper_row: str | None  # the row of the paper's Table 1 that it reproduces
    upscale: Upscale


def find_weights(entries: Sequence[Entry], *, pretrained_root: Path) -> list[Path | None]:
    """The file of each entry, None for bicubic; a known file is downloaded where it is missing.

    Raises UserError where a file is not there and cannot be had.
    """
    return [
        None if entry.source == BICUBIC else locate(entry.source, pretrained_root=pretrained_root) for entry in entries
    ]


def build_contestants(
    entries: Sequence[Entry],
    *,
    pretrained_root: Path,
    generator: dict | None,
    paper_row: str | None,
    upscaler: Callable[[nn.Module], Upscale],
) -> list[Contestant]:
    """Load all weights.

    Args:
        generator: options of the network that the weights must fit; None: each file tells what network it is.
        paper_row: of all weights; None: each file's own, where it has one.
        upscaler: makes a network ready to upscale.

    Raises:
        UserError: a file cannot be had or read, is no generator, does not fit, or two would have one label.
    """
    contestants, steps = [], []
    for entry, path in zip(entries, find_weights(entries, pretrained_root=pretrained_root), strict=True):
        if path is None:
            about, network_row, step = "MATLAB's interpolation", BICUBIC, None
            upscale, name = bicubic(SCALE), BICUBIC
        else:
            file = open_generator_file(path)
            upscale = upscaler(load_generator(file, generator))
            about, step, name = file.about, file.step, STRANGE.sub("_", file.name)[:100]
            network_row = paper_row or (file.paper_row if file.paper_row in PAPER else None)
        contestants.append(Contestant(entry.label or name, entry.source, about, network_row, upscale))
        steps.append(step)
    return _with_labels_apart(contestants, steps)


def _with_labels_apart(contestants: list[Contestant], steps: list[int | None]) -> list[Contestant]:
    """Weights of one run get their steps into their labels. Raises UserError where that does not tell them apart."""
    shared = Counter(contestant.label for contestant in contestants)
    apart = [
        replace(contestant, label=f"{contestant.label}_{step:09d}")
        if shared[contestant.label] > 1 and step is not None
        else contestant
        for contestant, step in zip(contestants, steps, strict=True)
    ]
    label, uses = Counter(contestant.label for contestant in apart).most_common(1)[0]
    if uses > 1:
        sources = " and ".join(contestant.source for contestant in apart if contestant.label == label)
        raise UserError(f"{sources} would both be called {label}; name them: --weights A={sources.split()[0]} B=...")
    return apart
