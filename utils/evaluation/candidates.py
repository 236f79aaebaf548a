"""What `test.py` compares: weights of generators, and bicubic interpolation, each under a label."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from sed_sr.models.build import load_generator
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.paper_scores import PAPER
from sed_sr.utils.evaluation.upscaler import Upscale, bicubic
from sed_sr.utils.weights.generator_file import GeneratorFile, open_generator_file
from sed_sr.utils.weights.pretrained import locate

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


def find_weights(entries: Sequence[Entry], *, pretrained_root: Path, compare: bool = True) -> list[Path | None]:
    """The file of each entry, None for bicubic; a known file is downloaded where it is missing.

    `compare` is as of `utils.weights.locate`. Raises UserError where a file is not there and cannot be had.
    """
    find = partial(locate, pretrained_root=pretrained_root, check_hash=compare)
    return [None if entry.source == BICUBIC else find(entry.source) for entry in entries]


def build_contestants(
    entries: Sequence[Entry],
    *,
    pretrained_root: Path,
    generator: dict | None,
    paper_row: str | None,
    upscaler: Callable[[nn.Module], Upscale],
    compare: bool = True,
) -> list[Contestant]:
    """Load all weights.

    Args:
        compare: as of `find_weights`.
        generator: options of the network that the weights must fit; None: each file tells what network it is.
        paper_row: of all weights; None: each file's own, where it has one.
        upscaler: makes a network ready to upscale.

    Raises:
        UserError: a file cannot be had or read, is no generator, does not fit, or two would have one label.
    """
    paths = find_weights(entries, pretrained_root=pretrained_root, compare=compare)
    files = [None if path is None else open_generator_file(path) for path in paths]
    labels = _labels([_names(entry, file) for entry, file in zip(entries, files, strict=True)], entries)
    return [
        Contestant(label, entry.source, "MATLAB's interpolation", BICUBIC, bicubic(SCALE))
        if file is None
        else Contestant(
            label,
            entry.source,
            file.about,
            paper_row or (file.paper_row if file.paper_row in PAPER else None),
            upscaler(load_generator(file, generator)),
        )
        for label, entry, file in zip(labels, entries, files, strict=True)
    ]


def _names(entry: Entry, file: GeneratorFile | None) -> list[str]:
    """What an entry may be called, the best first."""
    if entry.label is not None or file is None:
        return [entry.label or BICUBIC]
    steps = [] if file.step is None else [f"{file.name}_{file.step:09d}"]
    return [STRANGE.sub("_", name)[:100] for name in (file.name, *steps, file.path.name)]


def _labels(names: Sequence[list[str]], entries: Sequence[Entry]) -> list[str]:
    """For each entry the first of its names, or where another one has that too, the next.

    Raises UserError where that does not tell them apart.
    """
    labels = [own[0] for own in names]
    for place in range(1, max(map(len, names))):
        uses = Counter(labels)
        labels = [
            own[place] if uses[label] > 1 and place < len(own) else label
            for own, label in zip(names, labels, strict=True)
        ]
    label, uses = Counter(labels).most_common(1)[0]
    if uses > 1:
        sources = [entry.source for entry, other in zip(entries, labels, strict=True) if other == label]
        raise UserError(
            f"{' and '.join(sources)} would both be called {label}; name them: --weights A={sources[0]} B={sources[1]}"
        )
    return labels
