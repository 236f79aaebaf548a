"""What `test.py` compares: generator weights and bicubic interpolation, each with a label."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sed_sr.models.generator import Generator
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.paper_scores import PAPER, PAPER_SCALE
from sed_sr.utils.evaluation.upscaler import Upscale, bicubic
from sed_sr.utils.weights.generator_file import GeneratorFile, load_generator, open_generator_file
from sed_sr.utils.weights.hub import is_address
from sed_sr.utils.weights.pretrained import locate

BICUBIC = "bicubic"
LABEL = re.compile(r"\w[\w+.()-]{0,99}")  # labels become folder names
NOT_IN_LABEL = re.compile(r"[^\w+.()-]")


@dataclass(frozen=True)
class Entry:
    """One argument of --weights."""

    source: str  # a file as of `locate`, or `bicubic`
    label: str | None = None  # None: taken from the file

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """Parse FILE or LABEL=FILE. Raises UserError if the label is not valid as a folder name."""
        label, equals, source = text.partition("=")
        if not equals or is_address(text) or Path(text).exists():
            return cls(text)
        if not LABEL.fullmatch(label):
            raise UserError(f"invalid label in --weights {text}: letters, digits and . _ + - ( ) are allowed")
        return cls(source, label)


@dataclass(frozen=True)
class Candidate:
    """Weights that are loaded, or bicubic interpolation."""

    label: str
    source: str  # a path, or `bicubic`
    scale: int
    about: str  # description for users
    paper_row: str | None  # the row of the paper's Table 1 that it reproduces
    upscale: Upscale


def find_weights(entries: Sequence[Entry], *, pretrained_root: Path, check_hash: bool = True) -> list[Path | None]:
    """The file of each entry, None for bicubic. Files that can be downloaded are, if they are missing.

    `check_hash` is passed to `locate`. Raises UserError if a file is missing and cannot be downloaded.
    """
    find = partial(locate, pretrained_root=pretrained_root, check_hash=check_hash)
    return [None if entry.source == BICUBIC else find(entry.source) for entry in entries]


def load_candidates(
    entries: Sequence[Entry],
    *,
    pretrained_root: Path,
    generator: dict | None,
    scale: int,
    paper_row: str | None,
    upscaler: Callable[[Generator], Upscale],
    check_hash: bool = True,
) -> list[Candidate]:
    """Load all weights. Bicubic interpolation is one candidate for each scale of the others.

    Args:
        check_hash: as of `find_weights`.
        generator: options of the network that all weights must fit; None: the architecture is read from each file.
        scale: of `generator`, and of bicubic interpolation without other candidates.
        paper_row: for all weights; None: each file's own, if it has one. The scores of the paper are for x4 only.
        upscaler: makes an `Upscale` from a network.

    Raises:
        UserError: a file is missing, cannot be read, is not a generator or does not fit; or two labels are equal.
    """
    paths = find_weights(entries, pretrained_root=pretrained_root, check_hash=check_hash)
    files = [None if path is None else open_generator_file(path) for path in paths]
    fit_scale = None if generator is None else scale
    networks = [None if file is None else load_generator(file, generator, scale=fit_scale) for file in files]
    scales = sorted({network.scale for network in networks if network is not None}) or [scale]
    names, candidates = [], []
    for entry, file, network in zip(entries, files, networks, strict=True):
        if file is None or network is None:
            label = entry.label or BICUBIC
            for each in scales:
                names.append([label if len(scales) == 1 else f"{label}_x{each}"])
                row = BICUBIC if each == PAPER_SCALE else None
                about = "MATLAB's bicubic interpolation"
                candidates.append(Candidate(names[-1][0], entry.source, each, about, row, bicubic(each)))
            continue
        names.append(_names(entry, file))
        row = paper_row or (file.paper_row if file.paper_row in PAPER else None)
        row = row if network.scale == PAPER_SCALE else None
        candidates.append(Candidate(names[-1][0], entry.source, network.scale, file.about, row, upscaler(network)))
    labels = _labels(names, candidates)
    return [replace(candidate, label=label) for candidate, label in zip(candidates, labels, strict=True)]


def _names(entry: Entry, file: GeneratorFile) -> list[str]:
    """Possible labels of a file, the preferred one first."""
    if entry.label is not None:
        return [entry.label]
    steps = [] if file.step is None else [f"{file.name}_{file.step:09d}"]
    return [NOT_IN_LABEL.sub("_", name)[:100] for name in (file.name, *steps, file.path.name)]


def _labels(names: Sequence[list[str]], candidates: Sequence[Candidate]) -> list[str]:
    """The first name of each candidate; if another candidate has it too, the next one.

    Raises UserError if labels are still equal.
    """
    labels = [own[0] for own in names]
    for position in range(1, max(map(len, names))):
        uses = Counter(labels)
        labels = [
            own[position] if uses[label] > 1 and position < len(own) else label
            for own, label in zip(names, labels, strict=True)
        ]
    label, uses = Counter(labels).most_common(1)[0]
    if uses > 1:
        sources = [candidate.source for candidate, other in zip(candidates, labels, strict=True) if other == label]
        raise UserError(
            f"{' and '.join(sources)} have the same label {label}; give labels: --weights A={sources[0]} B={sources[1]}"
        )
    return labels
