"""Weights and training states on disk: written so that a crash never costs the old file, read without trusting the new.

Files are written under a temporary name, flushed to the disk and then renamed. They are read as tensors and plain
containers only: nothing in a file can run code.
"""

import io
import math
import pickle
import re
import string
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.files import atomic_writer

STATE_FORMAT = "sed-training-state"

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


def save(obj: object, path: str | Path) -> None:
    """Write `obj`, tensors in plain containers, with the guarantees of `atomic_writer`.

    Raises:
        UserError: the file cannot be written (full disk, no permission).
    """
    # Serialised in memory first: writing into a full disk, torch.save reports its zip writer's position instead of it.
    serialised = io.BytesIO()
    torch.save(obj, serialised)
    serialised.seek(0)
    refused = torch.serialization.get_unsafe_globals_in_checkpoint(serialised)
    assert not refused, f"{path} could never be loaded again: it would hold {', '.join(refused)}"
    with atomic_writer(Path(path)) as file:
        file.write(serialised.getbuffer())


def load(path: str | Path) -> dict:
    """Read a torch or safetensors file, told apart by content, onto the CPU; nothing in it is executed.

    Raises:
        UserError: there is no such file, it is of another kind, damaged, or holds more than tensors and plain
            containers.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory, but a file of weights was expected")
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist, but a file of weights was expected there") from None
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}") from error

    if not head:
        raise UserError(f"{path} is empty, but weights were expected in it")
    if set(head) <= set(string.printable.encode()):
        begins = head.decode().splitlines()[0]
        raise UserError(f"{path} is a text file that begins with {begins!r}, but weights were expected")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        payload = _load_safetensors(path)
    else:
        payload = _load_torch(path)
    if not isinstance(payload, dict):
        raise UserError(f"{path} holds a {type(payload).__name__}, but a dict of weights was expected in it")
    return payload


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is a damaged or cut-off safetensors file ({error}); fetch it again") from error


def _load_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript: the errors below say what matters
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes raise nearly anything: KeyError, EOFError, RuntimeError, OSError...
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript program, but a state dict was expected") from error
        if isinstance(error, pickle.UnpicklingError):
            culprit = re.search(r"GLOBAL (\S+)", str(error))
            found = f"the Python object {culprit[1]}" if culprit else "something else than tensors and plain containers"
            raise UserError(
                f"{path} holds {found} and is not loaded, because unpickling that could run code; save its bare state "
                "dict to a new file, if you trust it"
            ) from error
        raise UserError(f"{path} is damaged, cut off or no file of weights; fetch or copy it again") from error


@dataclass(frozen=True)
class GeneratorWeights:
    """A generator's weights, in the names of this project's modules, and what their file tells about them."""

    state: dict[str, Tensor]  # float32 on the CPU
    kind: str  # for people: "RRDB weights in BasicSR names, taken from 'params_ema'"
    options: dict | None  # the resolved options of the run that wrote them, where the file has them
    step: int | None  # the optimisation step at which they were written, where the file has it


def generator_weights(path: str | Path, *, ema: bool = True) -> GeneratorWeights:
    """Read a generator's weights from any file in use: this project's (training states included), SeD's, KAIR's,
    BasicSR's, Real-ESRGAN's, SwinIR's and old ESRGAN's.

    Args:
        path: a torch or safetensors file; half precision becomes float32.
        ema: take the running average of the weights where the file has one beside the weights themselves.

    Raises:
        UserError: as `load` does, and when the file holds no weights, or weights that are NaN or infinite.
    """
    return _generator_weights(load(path), path, ema=ema)


def _generator_weights(payload: dict, path: str | Path, *, ema: bool) -> GeneratorWeights:
    wrappers = WRAPPERS if ema else (*WRAPPERS[1:], WRAPPERS[0])
    wrapper = next((name for name in wrappers if isinstance(payload.get(name), dict)), None)
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
    options, step = payload.get("options"), payload.get("step")
    return GeneratorWeights(
        state=state,
        kind=f"{names}, {f'taken from {wrapper!r}' if wrapper else 'as a bare state dict'}",
        options=options if isinstance(options, dict) else None,
        step=step if isinstance(step, int) else None,
    )


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


def save_generator(
    path: str | Path,
    *,
    params: dict[str, Tensor],
    params_ema: dict[str, Tensor] | None,
    options: dict,
    step: int,
) -> None:
    """Write generator weights in BasicSR's layout, which the tools in use read.

    Args:
        params: the generator's state dict.
        params_ema: its running average, where one is kept.
        options: the resolved options of the run, plain types only.
        step: optimisation steps done.

    Raises:
        UserError: the file cannot be written.
    """
    averaged = {} if params_ema is None else {"params_ema": _on_cpu(params_ema)}
    save({"params": _on_cpu(params), **averaged, "options": options, "step": step}, path)


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # Other tools read these files on machines without a GPU and may not ask for the CPU.
    return {name: value.detach().cpu() for name, value in state.items()}


def save_state(path: str | Path, state: dict) -> None:
    """Write all that a run needs to go on.

    Args:
        state: tensors and plain containers, with the "step" reached and the generator's weights as "params" (and
            "params_ema"), so that a state serves wherever generator weights do; the rest is the training loop's own.

    Raises:
        UserError: the file cannot be written.
    """
    assert {"step", "params"} <= state.keys()
    save({"format": STATE_FORMAT, **state}, path)


def load_state(path: str | Path) -> dict:
    """Read what `save_state` was given.

    Raises:
        UserError: as `load` does, and when the file is no training state.
    """
    found = read_resume(path)
    if isinstance(found, GeneratorWeights):
        raise UserError(f"{path} holds {found.kind}, but a training state of this project was expected")
    return found


def read_resume(path: str | Path) -> dict | GeneratorWeights:
    """Read a training state, as `save_state` was given it, or else generator weights, to start from anew.

    Raises:
        UserError: as `generator_weights` does.
    """
    payload = load(path)
    if payload.get("format") != STATE_FORMAT:
        return _generator_weights(payload, path, ema=True)
    del payload["format"]
    return payload


def state_path(folder: str | Path, step: int) -> Path:
    """Where in `folder` the training state of `step` lies."""
    return Path(folder) / f"state_{step:09d}.pth"


def newest_state(folder: str | Path) -> Path | None:
    """The training state of the highest step in `folder`, or None where there is none."""
    return max(_states(folder), default=None)


def keep_newest(folder: str | Path, keep: int) -> None:
    """Delete the training states in `folder` but for the `keep` (at least 1) of the highest steps."""
    assert keep >= 1
    for path in sorted(_states(folder))[:-keep]:
        path.unlink(missing_ok=True)


def _states(folder: str | Path) -> list[Path]:
    # Nine digits sort as their numbers do. Half-written states have names of their own and never match.
    return [path for path in Path(folder).glob("state_*.pth") if re.fullmatch(r"state_\d{9}\.pth", path.name)]
