"""A generator's weights in the formats in the wild: recognised by their keys, renamed, loaded strictly."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from utils.errors import UserError

# The entries under which files in use keep the weights; where a file has several, the first of them counts.
WRAPPERS = ("params_ema", "params", "model", "state_dict", "model_state_dict")
# A module wrapped for several GPUs, a generator inside a larger model, and both in either order.
PREFIXES = ("module.", "netG.", "module.")
# Buffers in SwinIR files that follow from the architecture; the module itself deals with them.
DERIVED_BUFFERS = ("relative_position_index", "attn_mask")
# Layers around the trunk of RRDB: BasicSR's name, ours; the others have the same name in both.
BASICSR_NAMES = {
    "conv_body": "trunk_conv",
    "conv_up1": "upconv1",
    "conv_up2": "upconv2",
    "conv_hr": "HRconv",
}


@dataclass(frozen=True)
class GeneratorWeights:
    """A generator's weights, in the names of this project's modules, and what they are."""

    state: dict[str, Tensor]  # float32 on the CPU
    kind: str  # for people: "RRDB weights in BasicSR names, taken from 'params_ema'"


def generator_weights(payload: dict, path: str | Path) -> GeneratorWeights:
    """Recognise a generator's weights in any file in use: this project's (training states included), SeD's, KAIR's,
    BasicSR's, Real-ESRGAN's, SwinIR's and old ESRGAN's. The running average is taken where the file has one; half
    precision becomes float32.

    Args:
        payload: what the file holds, as `checkpoint.load` returns it.
        path: of the file, for messages.

    Raises:
        UserError: the file holds no weights, or weights that are NaN or infinite.
    """
    wrapper = next((name for name in WRAPPERS if isinstance(payload.get(name), dict)), None)
    state = payload[wrapper] if wrapper else payload
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise UserError(
            f"{path} holds no generator weights: a state dict was expected, bare or under {', '.join(WRAPPERS)}, "
            f"but {f'{wrapper!r} in it' if wrapper else 'it'} holds {_first_few(map(str, state)) or 'nothing'}"
        )
    state = {
        name: value.float() if value.is_floating_point() else value for name, value in _without_prefixes(state).items()
    }
    for name, value in state.items():
        if not value.isfinite().all():
            raise UserError(f"{path} holds NaN or infinite values in {name}; take weights from before they diverged")
    state, names = _in_our_names(state)
    return GeneratorWeights(state, f"{names}, {f'taken from {wrapper!r}' if wrapper else 'as a bare state dict'}")


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        # What lies beside a prefixed name is another network (netD.) or a counter (n_averaged), not the generator's.
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        state = inside or state
    return state


def _in_our_names(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """`state` in the names of this project's modules, and a phrase that says what it was."""
    if "RRDB_trunk.0.RDB1.conv1.weight" in state:
        return state, "RRDB weights in SeD names"
    if "body.0.rdb1.conv1.weight" in state:
        blocks = re.compile(r"body\.(\d+)\.rdb(\d)\.conv(\d)\.(\w+)")
        return _renamed(state, blocks, BASICSR_NAMES), "RRDB weights in BasicSR names"
    if "model.1.sub.0.RDB1.conv1.0.weight" in state:
        blocks = re.compile(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(\w+)")
        return _renamed(state, blocks, _old_esrgan_names(state)), "RRDB weights in old ESRGAN names"
    if "layers.0.residual_group.blocks.0.attn.relative_position_bias_table" in state:
        return state, "SwinIR weights"
    return state, "weights of an unknown architecture"


def _renamed(state: dict[str, Tensor], blocks: re.Pattern, layers: dict[str, str]) -> dict[str, Tensor]:
    def rename(name):
        if block := blocks.fullmatch(name):
            return "RRDB_trunk.{}.RDB{}.conv{}.{}".format(*block.groups())
        layer, dot, parameter = name.rpartition(".")
        return layers.get(layer, layer) + dot + parameter

    return {rename(name): value for name, value in state.items()}


def _old_esrgan_names(state: dict[str, Tensor]) -> dict[str, str]:
    # A flat sequence: conv_first, trunk, (upsample, upconv, activation) for each doubling, HRconv, activation,
    # conv_last. The convolution that ends the trunk is numbered after its last block.
    last = max(int(index[1]) for name in state if (index := re.match(r"model\.(\d+)\.", name)))
    trunk_conv = max(int(index[1]) for name in state if (index := re.match(r"model\.1\.sub\.(\d+)\.", name)))
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
        UserError: they do not fit; the sentence says whether the file is another architecture, another size of the
            same one, or no generator at all.
    """
    try:
        generator.load_state_dict(weights.state)
    except RuntimeError as error:
        raise UserError(f"{path} holds {weights.kind}, {_misfit(weights.state, generator.state_dict())}") from error


def _misfit(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    theirs, ours = _architecture(given), _architecture(wanted)
    differing = [trait for trait in ours if trait in theirs and theirs[trait] != ours[trait]]
    if not theirs and not given.keys() & wanted.keys():
        reason = "none of which the generator knows: it is the wrong file"
    elif differing:
        reason = " and ".join(f"{trait} {theirs[trait]} where the generator has {ours[trait]}" for trait in differing)
        reason = f"with {reason}"
    else:
        reason = "which do not fit the generator"

    given = {name: tuple(value.shape) for name, value in given.items() if not name.endswith(DERIVED_BUFFERS)}
    wanted = {name: tuple(value.shape) for name, value in wanted.items() if not name.endswith(DERIVED_BUFFERS)}
    findings = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {given[name]} for {shape}" for name, shape in wanted.items() if given.get(name, shape) != shape
        ],
    }
    details = "; ".join(f"{finding}: {_first_few(names)}" for finding, names in findings.items() if names)
    return f"{reason} ({details})"


def _architecture(state: dict[str, Tensor]) -> dict[str, object]:
    """The traits of an RRDB or SwinIR that its tensors give away; empty for another network."""
    if {"conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight"} <= state.keys():
        return {
            "architecture": "RRDB",
            "blocks": len({name.split(".")[1] for name in state if name.startswith("RRDB_trunk.")}),
            "features": state["conv_first.weight"].shape[0],
            "growth": state["RRDB_trunk.0.RDB1.conv1.weight"].shape[0],
            "input channels": state["conv_first.weight"].shape[1],
            "scale": 2 ** sum(bool(re.fullmatch(r"upconv\d\.weight", name)) for name in state),
        }
    table = "layers.0.residual_group.blocks.0.attn.relative_position_bias_table"
    if {"conv_first.weight", table} <= state.keys():
        upsampler, scale = _swinir_upsampler(state)
        return {
            "architecture": "SwinIR",
            "residual groups": len({name.split(".")[1] for name in state if name.startswith("layers.")}),
            "features": state["conv_first.weight"].shape[0],
            "heads": state[table].shape[1],
            "window": (math.isqrt(state[table].shape[0]) + 1) // 2,  # the table has (2 window - 1)^2 rows
            "upsampler": upsampler,
            "scale": scale,
        }
    return {}


def _swinir_upsampler(state: dict[str, Tensor]) -> tuple[str, int]:
    if "conv_up1.weight" in state:
        return "nearest+conv", 2 ** sum(bool(re.fullmatch(r"conv_up\d\.weight", name)) for name in state)
    shuffles = [state[name].shape for name in state if re.fullmatch(r"upsample\.\d\.weight", name)]
    if "conv_before_upsample.0.weight" in state:
        return "pixelshuffle", math.prod(math.isqrt(outputs // inputs) for outputs, inputs, *_ in shuffles)
    return "pixelshuffledirect", math.prod(math.isqrt(outputs // 3) for outputs, *_ in shuffles)


def _first_few(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
