"""A generator's weights in the formats in the wild: recognised by their keys, renamed, loaded strictly."""

import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sed_sr.options.errors import UserError
from sed_sr.utils.weights.architecture import in_words, traits_of
from sed_sr.utils.weights.wrappers import without_wrappers

# The entries under which files in use keep the weights; where a file has several, the first of them counts.
WRAPPERS = ("params_ema", "params", "model", "state_dict", "model_state_dict")
# Attributes that hold a generator in larger models, such as Lightning's. A network may itself have such an attribute.
GENERATOR_ATTRIBUTES = frozenset({"generator", "model"})
# For each naming, the key of a tensor that every network of that kind has.
MARKERS = {
    "SeD": "RRDB_trunk.0.RDB1.conv1.weight",
    "BasicSR": "body.0.rdb1.conv1.weight",
    "old ESRGAN": "model.1.sub.0.RDB1.conv1.0.weight",
    "SwinIR": "layers.0.residual_group.blocks.0.attn.relative_position_bias_table",
}
# Buffers in SwinIR files that follow from the architecture; the module itself deals with them.
RECOMPUTED_BUFFERS = ("relative_position_index", "attn_mask")
# Layers around the trunk of RRDB: BasicSR's name, ours; the others have the same name in both.
BASICSR_NAMES = {
    "conv_body": "trunk_conv",
    "conv_up1": "upconv1",
    "conv_up2": "upconv2",
    "conv_up3": "upconv3",
    "conv_hr": "HRconv",
}
# What weights (floating point) and the counters beside them (integers) are stored in; 8-bit floats lack their scales.
PLAIN_TYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
)


@dataclass(frozen=True)
class GeneratorWeights:
    """A generator's weights, in the names of this project's modules, and what they are."""

    state: dict[str, Tensor]  # float32 on the CPU
    entry: str | None  # of the file, that they were taken from; None for a bare state dict
    # For people: "RRDB (23 blocks, 64 features, growth 32), x4, in BasicSR names, from 'params', stripped of 'module.'"
    kind: str


def generator_weights(payload: dict, path: str | Path, *, entry: str | None = None) -> GeneratorWeights:
    """Recognise a generator's weights in any file in use: this project's (training states included), SeD's, KAIR's,
    BasicSR's, Real-ESRGAN's, SwinIR's and old ESRGAN's. Half precision becomes float32.

    Args:
        payload: what the file holds, as `checkpoint.load` returns it.
        path: of the file, for messages.
        entry: that the weights are to be taken from; None: the running average where the file has one.

    Raises:
        UserError: the file holds no weights (or none in this entry), or weights that are NaN, infinite or no real
            numbers.
    """
    wrappers = [name for name in WRAPPERS if isinstance(payload.get(name), dict)]
    if entry is not None and entry not in wrappers:
        where = f"under {' and '.join(wrappers)}" if wrappers else "as a bare state dict"
        raise UserError(f"{path} has its weights {where}, and none under {entry}")
    wrapper = entry or next(iter(wrappers), None)
    state = payload[wrapper] if wrapper else payload
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise UserError(
            f"{path} holds no generator weights: a state dict was expected, bare or under {', '.join(WRAPPERS)}, "
            f"but {f'{wrapper!r} in it' if wrapper else 'it'} holds {_first_few(state) or 'nothing'}"
        )
    state, wrappers = without_wrappers(
        state, path, attributes=GENERATOR_ATTRIBUTES, known=lambda names: not names.isdisjoint(MARKERS.values())
    )
    state = {name: _checked(value, name, path) for name, value in state.items()}
    ours, names = _in_our_names(state)
    if len(ours) < len(state):
        raise UserError(
            f"{path} holds weights {names}, and some of them under other names too; it is not clear which of them count"
        )
    network = in_words(ours) or "weights of an unknown architecture"
    origin = f"from {wrapper!r}" if wrapper else "as a bare state dict"
    return GeneratorWeights(ours, wrapper, ", ".join(filter(None, (network, names, origin, wrappers))))


def _checked(value: Tensor, name: str, path: str | Path) -> Tensor:
    """`value`, in float32 if it is floating point. Raises UserError unless it is finite numbers, stored one by one."""
    plain = value.dtype in PLAIN_TYPES and value.layout == torch.strided
    # meta tensors have no numbers, and expanded ones have fewer than they say, which may be more than memory holds
    if not plain or value.device.type != "cpu" or value.untyped_storage().nbytes() < value.nbytes:
        raise UserError(
            f"{path} holds {_shown(name)} as something else than a plain tensor of floating-point numbers "
            f"({value.dtype}, {value.layout}, on {value.device})"
        )
    value = value.float() if value.is_floating_point() else value
    if not value.isfinite().all():
        raise UserError(
            f"{path} holds NaN or infinite values in {_shown(name)}; take weights from before they diverged"
        )
    return value


def _in_our_names(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
    """`state` in the names of this project's modules, and a phrase that says which it had, where there are several."""
    if MARKERS["SeD"] in state:
        return state, "in SeD names"
    if MARKERS["BasicSR"] in state:
        blocks = re.compile(r"body\.(\d+)\.rdb(\d)\.conv(\d)\.(\w+)")
        return _renamed(state, blocks, BASICSR_NAMES), "in BasicSR names"
    if MARKERS["old ESRGAN"] in state:
        blocks = re.compile(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(\w+)")
        return _renamed(state, blocks, _old_esrgan_names(state)), "in old ESRGAN names"
    return state, None


def _renamed(state: dict[str, Tensor], blocks: re.Pattern, layers: dict[str, str]) -> dict[str, Tensor]:
    def rename(name):
        if block := blocks.fullmatch(name):
            return "RRDB_trunk.{}.RDB{}.conv{}.{}".format(*block.groups())
        layer, dot, parameter = name.rpartition(".")
        return layers.get(layer, layer) + dot + parameter

    return {rename(name): value for name, value in state.items()}


def in_basicsr_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An RRDB's weights under the names of BasicSR and Real-ESRGAN; SwinIR's have the same names there."""
    if MARKERS["SeD"] not in state:
        return dict(state)
    layers = {ours: theirs for theirs, ours in BASICSR_NAMES.items()}

    def rename(name):
        name = re.sub(r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2.", name)
        layer, dot, parameter = name.rpartition(".")
        return layers.get(layer, layer) + dot + parameter

    return {rename(name): value for name, value in state.items()}


def _old_esrgan_names(state: dict[str, Tensor]) -> dict[str, str]:
    # A flat sequence: conv_first, trunk, (upsample, upconv, activation) for each doubling, HRconv, activation,
    # conv_last. The convolution that ends the trunk is numbered after its last block. Larger numbers are no layer's.
    last = max(int(index[1]) for name in state if (index := re.match(r"model\.(\d{1,3})\.", name)))
    trunk_conv = max(int(index[1]) for name in state if (index := re.match(r"model\.1\.sub\.(\d{1,3})\.", name)))
    return {
        "model.0": "conv_first",
        f"model.1.sub.{trunk_conv}": "trunk_conv",
        **{f"model.{3 * doubling}": f"upconv{doubling}" for doubling in range(1, last // 3)},
        f"model.{last - 2}": "HRconv",
        f"model.{last}": "conv_last",
    }


def load_into(generator: nn.Module, weights: GeneratorWeights, path: str | Path) -> None:
    """Load `weights`, read from `path`, into `generator`; every parameter must be there and fit.

    Raises:
        UserError: they do not fit, as `check_shapes` says, and `generator` is as it was.
    """
    check_shapes(generator, weights, path)
    generator.load_state_dict({**generator.state_dict(), **_without_derived(weights.state)})


def check_shapes(generator: nn.Module, weights: GeneratorWeights, path: str | Path) -> None:
    """Compare `weights`, read from `path`, with `generator`, which may lie on the meta device.

    Raises:
        UserError: they do not fit; the sentence says whether the file is another architecture, another size of the same
            one, or no generator at all.
    """
    given, wanted = _without_derived(weights.state), _without_derived(generator.state_dict())
    # Before anything is copied: load_state_dict copies what fits, and tells of the rest afterwards.
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
    if any(findings.values()):
        raise UserError(f"{path} holds {weights.kind}, {_misfit(given, wanted, findings)}")


def _without_derived(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.endswith(RECOMPUTED_BUFFERS)}


def _misfit(given: dict[str, Tensor], wanted: dict[str, Tensor], findings: dict[str, list[str]]) -> str:
    """What kind of mistake lies behind the `findings`: the wrong file, network or size, or single tensors."""
    theirs, ours = traits_of(given), traits_of(wanted)
    if not theirs and not given.keys() & wanted.keys():
        return f"none of which the generator knows: it is the wrong file (it holds {_first_few(given)})"
    differing = [trait for trait in ours if trait in theirs and theirs[trait] != ours[trait]]
    if "architecture" in differing:
        return f"but the options ask for {ours['architecture']}"
    if differing:
        traits = " and ".join(f"{trait} {theirs[trait]} where the options ask for {ours[trait]}" for trait in differing)
        return f"with {traits}"
    details = "; ".join(f"{finding}: {_first_few(names)}" for finding, names in findings.items() if names)
    return f"which do not fit the generator of the options ({details})"


def _first_few(names: Iterable[object]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(_shown, names[:3])) + more


def _shown(name: object) -> str:
    """A key of a file for a message: however long or strange it is, a few words on one line."""
    return name if isinstance(name, str) and name.isprintable() and len(name) <= 100 else reprlib.repr(name)
