"""Safe reading and writing of weights and training states.

Files are written under a temporary name, flushed to disk and then renamed. They are read as tensors and plain
containers only, so nothing in a file can run code. torch.save writes a zip archive with the CRC-32 of each member.
torch.load ignores these checksums; `load` compares them, so that no flipped bit gets into a run.
"""

import copy
import hashlib
import io
import json
import pickle
import re
import string
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sed_sr.data.files import atomic_writer
from sed_sr.options.errors import UserError

STATE_FORMAT = "sed-training-state"
RECORD, ENTRY = "sed_record", "sed_entry"  # keys in safetensors metadata: for what is beside the weights, their entry
ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x3a]")  # starts with the version, then the producer or the graph
DOS_DIRECTORY = 0x10  # attribute of a member of a zip archive


def save(obj: object, path: str | Path) -> None:
    """Write `obj`, tensors in plain containers, with the guarantees of `atomic_writer`.

    Raises:
        UserError: the file cannot be written (full disk, no permission).
    """
    # Serialised in memory first: on a full disk, torch.save raises an error about its zip writer instead.
    serialised = as_torch(obj)
    with atomic_writer(Path(path)) as file:
        file.write(serialised)


def as_torch(obj: object) -> memoryview:
    """`obj`, tensors in plain containers, as the bytes of a file that `load` and `torch.load` read."""
    serialised = io.BytesIO()
    torch.save(obj, serialised)
    serialised.seek(0)
    refused = torch.serialization.get_unsafe_globals_in_checkpoint(serialised)
    assert not refused, f"the file could not be loaded again: it would hold {', '.join(refused)}"
    return serialised.getbuffer()


def load(path: str | Path, *, verified: bool = False) -> dict:
    """Read a torch or safetensors file onto the CPU; nothing in it is executed. The format is detected by content.

    Args:
        verified: the SHA-256 of the file was compared with the published one. Then the checksums inside are skipped,
            and tensors are mapped into memory, so that only those in use are read. The file must not be modified.

    Raises:
        UserError: the file does not exist, is of another kind, damaged, or holds more than tensors and plain
            containers.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory, but a weight file was expected")
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist, but a weight file was expected there") from None
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}") from error

    if not head:
        raise UserError(f"{path} is empty, but weights were expected in it")
    if set(head) <= set(string.printable.encode()):
        begins = head.decode().splitlines()[0]
        raise UserError(f"{path} is a text file that begins with {begins!r}, but weights were expected")
    if not head.startswith((b"PK", b"\x80")) and head[8:9] != b"{":  # zip, pickle; safetensors: a length
        if ONNX.match(head):
            raise UserError(
                f"{path} is an ONNX program, which cannot be read back: use the weight file that it was made from"
            )
        raise UserError(f"{path} is not a weight file")
    if head.startswith(b"PK") and not verified and not _is_intact(path):
        raise UserError(f"{path} is damaged or truncated (its checksums differ): fetch or copy it again")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        payload = _load_safetensors(path)
    else:
        payload = _load_torch(path, mapped=verified and head.startswith(b"PK"))
    if not isinstance(payload, dict):
        raise UserError(f"{path} holds a {type(payload).__name__}, but a dict of weights was expected in it")
    return payload


def _load_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            record = json.loads(metadata[RECORD]) if RECORD in metadata else None
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is a damaged or truncated safetensors file ({error}): fetch it again") from error
    return {**record, metadata.get(ENTRY, "params"): tensors} if isinstance(record, dict) else tensors


def _load_torch(path: Path, *, mapped: bool) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols and TorchScript; the errors below suffice
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged files raise nearly anything: KeyError, EOFError, RuntimeError, OSError...
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript program, but a state dict was expected") from error
        if isinstance(error, pickle.UnpicklingError):
            culprit = re.search(r"GLOBAL ([\w.]{1,100}) ", str(error))
            found = (
                f"the Python object {culprit[1]}" if culprit else "something other than tensors and plain containers"
            )
            raise UserError(
                f"{path} holds {found} and is not loaded, because unpickling that could run code; save its bare state "
                "dict to a new file, if you trust it"
            ) from error
        raise UserError(f"{path} is damaged, truncated or not a weight file: fetch or copy it again") from error


def _is_intact(path: Path) -> bool:
    """Whether the members of a zip archive have the CRC-32 that the archive states."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # torch.load reads nothing of a member that is marked as a directory, and returns uninitialised memory.
            if any(member.external_attr & DOS_DIRECTORY for member in members):
                return False
            # torch.save can be set not to compute checksums; then all are zero.
            return not any(member.CRC for member in members) or archive.testzip() is None
    except Exception:  # damaged files raise nearly anything: BadZipFile, zlib.error, EOFError...
        return False


def as_safetensors(tensors: dict[str, Tensor], *, entry: str, record: dict[str, Any]) -> bytes:
    """The bytes of a safetensors file: `load` returns `{entry: tensors, **record}`, other readers the tensors alone.

    Args:
        record: plain types only; if it is empty, neither it nor `entry` is written.
    """
    beside = {ENTRY: entry, RECORD: json.dumps(record)} if record else {}
    return safetensors.torch.save(tensors, metadata={"format": "pt", **beside})


def save_generator(
    path: str | Path,
    *,
    params: dict[str, Tensor],
    params_ema: dict[str, Tensor] | None,
    options: dict,
    step: int,
    scale: int,
    scores: dict[str, dict[str, float]],
    scored_step: int,
) -> None:
    """Write generator weights in BasicSR's layout, which other tools read, with a record of the run.

    Args:
        params: the generator's state dict.
        params_ema: its running average, if there is one.
        options: the resolved options of the run, plain types only.
        step: optimisation steps done.
        scale: upsampling factor of the generator.
        scores: of the last validation at or before `step`: benchmark -> metric -> mean. Empty if there was none.
        scored_step: the step of that validation.

    Raises:
        UserError: the file cannot be written.
    """
    averaged = {} if params_ema is None else {"params_ema": _on_cpu(params_ema)}
    about = {"options": options, "step": step, "scale": scale, "scores": scores, "scored_step": scored_step}
    save({"params": _on_cpu(params), **averaged, **about}, path)


def save_discriminator(path: str | Path, *, params: dict[str, Tensor], options: dict, step: int) -> None:
    """Write discriminator weights in the layout of `save_generator`.

    Args:
        params: the discriminator's state dict.
        options, step: as of `save_generator`.

    Raises:
        UserError: the file cannot be written.
    """
    save({"params": _on_cpu(params), "options": options, "step": step}, path)


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # Other tools read these files on machines without a GPU, and may not pass map_location.
    return {name: value.detach().cpu() for name, value in state.items()}


def snapshot(state: Any) -> Any:
    """A copy of tensors in plain containers in host memory, which can be saved while the original changes.

    A tensor under several names is copied once, so that neither memory nor the file grows.
    """
    return _copied(state, {})


def _copied(value: Any, copies: dict[tuple, Tensor]) -> Any:
    if isinstance(value, Tensor):
        memory = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if memory not in copies:
            copies[memory] = value.detach().to("cpu", copy=True)
        return copies[memory]
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps the `_metadata` of a state dict
        copied.update((key, _copied(part, copies)) for key, part in value.items())
        return copied
    if isinstance(value, list | tuple):
        return type(value)(_copied(part, copies) for part in value)
    return value


def digest(state: Any) -> str:
    """The SHA-256 of tensors in plain containers, in hexadecimal digits."""
    whole = hashlib.sha256()
    for leaf in tree_leaves(state):
        if isinstance(leaf, Tensor):
            whole.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            whole.update(repr(leaf).encode())
    return whole.hexdigest()


def save_state(path: str | Path, state: dict) -> None:
    """Write a training state, from which a run can be resumed.

    Args:
        state: tensors and plain containers, with the "step" reached and the generator's weights as "params" (and
            "params_ema"), so that the file can be used as generator weights; the rest is defined by the training loop.

    Raises:
        UserError: the file cannot be written.
    """
    assert {"step", "params"} <= state.keys()
    save({"format": STATE_FORMAT, **state}, path)


def is_training_state(payload: dict) -> bool:
    """Whether a loaded file was written by `save_state`."""
    return payload.get("format") == STATE_FORMAT
