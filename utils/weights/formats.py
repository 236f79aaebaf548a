"""Generator weights in the file formats in use: recognised by their keys, renamed to ours, loaded strictly.

Networks that this project has no class for are left to spandrel (models/spandrel_generator.py), under the names of the
file. spandrel is not used for the others: it takes two seconds to import, knows no RRDB with another growth than 32 and
no generator inside a larger model, and renames RRDB's weights for a network of its own.
"""

import re
import reprlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor, nn

from sed_sr.models.spandrel_generator import SpandrelGenerator
from sed_sr.options.errors import UserError
from sed_sr.utils.weights.architecture import describe, traits_of

# Entries that hold the weights; if a file has several, the first of them is taken.
ENTRIES = ("params_ema", "params-ema", "params", "model", "net", "state_dict", "model_state_dict")
# For each naming scheme, a key that all its files contain.
MARKERS = {
    "SeD": "RRDB_trunk.0.RDB1.conv1.weight",
    "BasicSR": "body.0.rdb1.conv1.weight",
    "old ESRGAN": "model.1.sub.0.RDB1.conv1.0.weight",
    "SwinIR": "layers.0.residual_group.blocks.0.attn.relative_position_bias_table",
}
# Buffers in SwinIR files that follow from the architecture; the module itself computes them.
RECOMPUTED_BUFFERS = ("relative_position_index", "attn_mask")
# Prefixes of unknown networks: of DistributedDataParallel, KAIR and BasicSR.
OUTER_WRAPPERS = frozenset({"module", "netG", "net_g"})
# Of torch.compile, FSDP and activation checkpointing; they also wrap parts of a network.
INNER_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Patterns at the beginning of an RRDB's names, and what replaces them. KAIR and ESRGAN have our names.
FROM_BASICSR = {
    r"body\.(\d+)\.rdb(\d)\.": r"RRDB_trunk.\1.RDB\2.",
    r"conv_body\.": "trunk_conv.",
    r"conv_up(\d)\.": r"upconv\1.",
    r"conv_hr\.": "HRconv.",
}
TO_BASICSR = {
    r"RRDB_trunk\.(\d+)\.RDB(\d)\.": r"body.\1.rdb\2.",
    r"trunk_conv\.": "conv_body.",
    r"upconv(\d)\.": r"conv_up\1.",
    r"HRconv\.": "conv_hr.",
}
# Types of weights and of counters beside them. 8-bit floats are not among them: their scales are missing.
PLAIN_TYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
)


@dataclass(frozen=True)
class GeneratorWeights:
    """A generator's weights, float32 on the CPU."""

    state: dict[str, Tensor]  # under the names of this project's modules
    original: dict[str, Tensor]  # under the names of the file, without those of wrappers
    entry: str | None  # of the file, which they were taken from; None for a bare state dict
    network: str | None  # "RRDB (23 blocks, 64 features, growth 32), x4"; None if it is unknown
    origin: str  # "in SeD names, from 'params', stripped of 'module.'"

    @property
    def kind(self) -> str:
        """Network and origin, for messages."""
        return f"{self.network or 'weights of an unknown architecture'}, {self.origin}"


def generator_weights(payload: dict, path: str | Path, *, entry: str | None = None) -> GeneratorWeights:
    """Recognise a generator's weights in files of this project (training states included), SeD, KAIR, BasicSR,
    Real-ESRGAN, SwinIR and ESRGAN (old and new). Half precision becomes float32.

    Args:
        payload: the content of the file, as `checkpoint.load` returns it.
        path: of the file, for messages.
        entry: which the weights are taken from; None: the running average if the file has one.

    Raises:
        UserError: the file holds no weights (or none in this entry), or weights that are NaN, infinite or not real
            numbers.
    """
    markers = [{marker} for marker in MARKERS.values()]
    state, entry, stripped = network_weights(payload, path, what="generator", markers=markers, entry=entry)
    ours, naming = _in_our_names(state)
    if len(ours) < len(state):
        raise UserError(
            f"{path} holds some of its weights twice, {naming} and under other names: it is unclear which ones count"
        )
    origin = (naming, f"from {entry!r}" if entry else "as a bare state dict", stripped)
    return GeneratorWeights(ours, state, entry, describe(ours), ", ".join(filter(None, origin)))


def network_weights(
    payload: dict, path: str | Path, *, what: str, markers: Iterable[Collection[str]], entry: str | None = None
) -> tuple[dict[str, Tensor], str | None, str | None]:
    """The weights of one network in a file, in float32, under their names in the file without wrappers.

    Args:
        payload, path, entry: as of `generator_weights`.
        what: the network, for messages.
        markers: as of `unwrap`.

    Returns:
        The weights; the entry that held them, None for a bare state dict; what was stripped, as from `unwrap`.

    Raises:
        UserError: as of `generator_weights`.
    """
    entries = [name for name in ENTRIES if isinstance(payload.get(name), dict)]
    if entry is not None and entry not in entries:
        where = f"under {' and '.join(entries)}" if entries else "as a bare state dict"
        raise UserError(f"{path} has its weights {where}, and none under {entry}")
    entry = entry or next(iter(entries), None)
    state = payload[entry] if entry else payload
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise UserError(
            f"{path} holds no {what} weights: a state dict was expected, bare or under {', '.join(ENTRIES)}, "
            f"but {f'{entry!r} in it' if entry else 'it'} holds {_first_few(state) or 'nothing'}"
        )
    state, stripped = unwrap(state, path, markers=markers)
    return {name: _checked(value, name, path) for name, value in state.items()}, entry, stripped


def unwrap(
    state: dict[str, Tensor], path: str | Path, *, markers: Iterable[Collection[str]]
) -> tuple[dict[str, Tensor], str | None]:
    """Strip the names of weights of the prefixes of modules that were wrapped around a network, in any nesting.

    A known network is found under any prefix (`module.`, `netG.`, `model.generator.`), and what is beside it is left
    out: other networks, losses, counters. Unknown networks lose the prefixes of DistributedDataParallel and the like.

    Args:
        path: of the file, for messages.
        markers: a network is known if it has all names of one of these collections.

    Returns:
        The weights, and a phrase that says what was stripped from their names, or None.

    Raises:
        UserError: there are several known networks, or several tensors with the same name.
    """
    names = {".".join(part for part in name.split(".") if part not in INNER_WRAPPERS): name for name in state}
    if len(names) < len(state):
        raise UserError(f"{path} holds weights twice, with and without {' or '.join(sorted(INNER_WRAPPERS))}")
    prefixes = list(dict.fromkeys(prefix for marker in markers for prefix in _prefixes(names, marker)))
    if len(prefixes) > 1:
        found = " and ".join(map(repr, prefixes))
        raise UserError(f"{path} holds several networks, under {found}: save the one to use in a file of its own")
    prefix = prefixes[0] if prefixes else _common_wrapper(names)
    kept = {name[len(prefix) :]: original for name, original in names.items() if name.startswith(prefix)}
    inner = (part for original in kept.values() for part in original.split(".") if part in INNER_WRAPPERS)
    stripped = ", ".join(f"'{part}.'" for part in dict.fromkeys((*prefix.split(".")[:-1], *inner)))
    return {name: state[original] for name, original in kept.items()}, f"stripped of {stripped}" if stripped else None


def _prefixes(names: Collection[str], marker: Collection[str]) -> Iterator[str]:
    """The prefixes under which `names` has all names of a network."""
    first = next(iter(marker))
    for name in names:
        before, found, after = name.rpartition(first)
        if found and not after and before[-1:] in ("", ".") and all(before + key in names for key in marker):
            yield before


def _common_wrapper(names: Collection[str]) -> str:
    """The prefix that all names have, as far as it is known to be a wrapper's."""
    parts = next(iter(names), "").split(".")[:-1]
    prefix = "".join(f"{part}." for part in takewhile(OUTER_WRAPPERS.__contains__, parts))
    return prefix if all(name.startswith(prefix) for name in names) else ""


def _checked(value: Tensor, name: str, path: str | Path) -> Tensor:
    """`value`, in float32 if it is floating point. Raises UserError unless it is a plain tensor of finite numbers."""
    plain = value.dtype in PLAIN_TYPES and value.layout == torch.strided
    # Meta tensors have no numbers; expanded ones have fewer than their shape says, which may exceed the memory.
    if not plain or value.device.type != "cpu" or value.untyped_storage().nbytes() < value.nbytes:
        raise UserError(
            f"{path} holds {_shown(name)} as something other than a plain tensor of floating-point numbers "
            f"({value.dtype}, {value.layout}, on {value.device})"
        )
    value = value.float() if value.is_floating_point() else value
    if not value.isfinite().all():
        raise UserError(
            f"{path} holds NaN or infinite values in {_shown(name)}; take weights from before they diverged"
        )
    return value


def _in_our_names(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
    """`state` under the names of this project's modules, and a phrase that says which names it had."""
    if MARKERS["SeD"] in state:
        return state, "in SeD names"
    if MARKERS["BasicSR"] in state:
        return _renamed(state, FROM_BASICSR), "in BasicSR names"
    if MARKERS["old ESRGAN"] in state:
        return _renamed(state, _from_old_esrgan(state)), "in old ESRGAN names"
    return state, None


def in_basicsr_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An RRDB's weights under the names of BasicSR and Real-ESRGAN; SwinIR has the same names there."""
    return _renamed(state, TO_BASICSR) if MARKERS["SeD"] in state else dict(state)


def _renamed(state: dict[str, Tensor], rules: dict[str, str]) -> dict[str, Tensor]:
    """`state` with the beginnings of its names replaced: the first of the patterns that matches, by its value."""

    def rename(name: str) -> str:
        for pattern, replacement in rules.items():
            if match := re.match(pattern, name):
                return match.expand(replacement) + name[match.end() :]
        return name

    return {rename(name): value for name, value in state.items()}


def _from_old_esrgan(state: dict[str, Tensor]) -> dict[str, str]:
    # A flat sequence: conv_first, trunk, (upsample, upconv, activation) for each doubling, HRconv, activation,
    # conv_last. The convolution that ends the trunk is numbered after its last block. No layer has a larger number.
    last = max(int(index[1]) for name in state if (index := re.match(r"model\.(\d{1,3})\.", name)))
    trunk_conv = max(int(index[1]) for name in state if (index := re.match(r"model\.1\.sub\.(\d{1,3})\.", name)))
    return {
        r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.": r"RRDB_trunk.\1.RDB\2.conv\3.",
        rf"model\.1\.sub\.{trunk_conv}\.": "trunk_conv.",
        r"model\.0\.": "conv_first.",
        **{rf"model\.{3 * doubling}\.": f"upconv{doubling}." for doubling in range(1, last // 3)},
        rf"model\.{last - 2}\.": "HRconv.",
        rf"model\.{last}\.": "conv_last.",
    }


def load_into(generator: nn.Module, weights: GeneratorWeights, path: str | Path) -> None:
    """Load `weights`, read from `path`, into `generator`; every parameter must exist and have the same shape.

    Raises:
        UserError: they do not fit (see `check_shapes`); `generator` is unchanged.
    """
    if isinstance(generator, SpandrelGenerator):
        weights = _as_loaded_by_spandrel(weights, path)
    check_shapes(generator, weights, path)
    generator.load_state_dict({**generator.state_dict(), **_without_recomputed(weights.state)})


def _as_loaded_by_spandrel(weights: GeneratorWeights, path: str | Path) -> GeneratorWeights:
    """`weights` under the names that spandrel's network for them has."""
    try:
        loaded = SpandrelGenerator(weights.original)
    except UserError as error:
        raise UserError(f"{path} holds {weights.kind}: {error}") from error
    return replace(weights, state=loaded.state_dict(), network=loaded.about)


def check_shapes(generator: nn.Module, weights: GeneratorWeights, path: str | Path) -> None:
    """Compare `weights`, read from `path`, with `generator`, which may be on the meta device.

    Raises:
        UserError: they do not fit; the message says whether the file holds another architecture, another size of the
            same one, or no generator.
    """
    given, wanted = _without_recomputed(weights.state), _without_recomputed(generator.state_dict())
    differences = differences_between(given, wanted)
    if differences:
        raise UserError(f"{path} holds {weights.kind}, {_mismatch(given, generator, differences)}")


def differences_between(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """What keeps a state dict from being loaded in place of `wanted`, for messages; empty if nothing does.

    Not left to load_state_dict, which copies what fits before it reports the rest.
    """
    findings = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {tuple(given[name].shape)} for {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in given and given[name].shape != value.shape
        ],
        "of another type": [
            f"{name} {given[name].dtype} for {value.dtype}"
            for name, value in wanted.items()
            if name in given and given[name].is_floating_point() != value.is_floating_point()
        ],
    }
    return "; ".join(f"{finding}: {_first_few(names)}" for finding, names in findings.items() if names)


def _without_recomputed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.endswith(RECOMPUTED_BUFFERS)}


def _mismatch(given: dict[str, Tensor], generator: nn.Module, differences: str) -> str:
    """The mistake behind the `differences`: the wrong file, architecture or size, or single tensors."""
    wanted = generator.state_dict()
    theirs, ours = traits_of(given), traits_of(wanted)
    if not theirs and not given.keys() & wanted.keys():
        return f"and no name in it is one of the generator: it is the wrong file (it holds {_first_few(given)})"
    differing = [trait for trait in ours if trait in theirs and theirs[trait] != ours[trait]]
    if "architecture" in differing:
        return f"but the options ask for {ours['architecture']}"
    if "scale" in differing:
        return f"but the options ask for x{generator.scale}"
    if differing:
        traits = " and ".join(f"{trait} {theirs[trait]} where the options ask for {ours[trait]}" for trait in differing)
        return f"with {traits}"
    return f"which do not fit the generator of the options ({differences})"


def _first_few(names: Iterable[object]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(_shown, names[:3])) + more


def _shown(name: object) -> str:
    """A key of a file for a message: on one line, and shortened if it is long."""
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 100 else reprlib.repr(name)
