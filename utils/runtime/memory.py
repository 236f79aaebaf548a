"""How much memory there is, how much a computation takes, and whether it was too much."""

import ctypes
import os
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)

# What PyTorch's allocator says on a CPU, on Linux and on Windows, and oneDNN; on a GPU there is a class for it.
CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_OUT_OF_MEMORY)


def unless_out_of_memory(compute: Callable[[], T]) -> T | None:
    """What `compute` returns, or None where memory did not suffice."""
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Not in the handler: until it ends, the error's traceback holds on to all that was computed before.
    torch.cuda.empty_cache()
    return None


def peak_bytes(device: torch.device) -> int:
    """Largest so far: of a GPU's allocations, or of the process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes


def disable_malloc_trim() -> None:
    """Let this process keep the memory of tensors on the CPU that are gone, for those to come.

    A training step takes and frees the same gigabytes again and again, and the C library would have the system clear
    each large piece anew. For the GNU library; others do without.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, -1)  # never
        library.mallopt(M_MMAP_THRESHOLD, 2**30)


def total_bytes(device: torch.device) -> int:
    """All that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(device: torch.device) -> int:
    """What this process could still take: on a GPU, or of the machine within the limits that are set for it."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch, for itself
        return torch.cuda.mem_get_info(device)[0] + kept
    return max(0, min((total_bytes(device), *_available_bytes(), *_cgroup_bytes(), *_address_space_bytes())))


def _available_bytes() -> Iterator[int]:
    """What the machine could give away without swapping, where it says so."""
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _cgroup_bytes(root: Path = Path("/sys/fs/cgroup"), membership: str = "/proc/self/cgroup") -> Iterator[int]:
    """What is left within the limit of each control group (version 1 or 2) around this process: a container's, a job's.

    Memory that holds files alone is given back before a group runs out, and does not count as used.
    """
    for line in _lines(membership):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, used, prefix = root, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            base, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"
        else:
            continue
        group = base / path.lstrip("/")
        # Inside a container the path may be the host's: then only the folder of the container itself is there.
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            numbers = [*_lines(folder / limit), *_lines(folder / used)]
            if len(numbers) == 2 and numbers[0].isdigit():  # "max": no limit
                counts = dict(line.split() for line in _lines(folder / "memory.stat"))
                files = sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                yield int(numbers[0]) - int(numbers[1]) + files


def _address_space_bytes() -> Iterator[int]:
    """What is left within the process's own limit (`ulimit -v`), where one is set."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        for line in _lines("/proc/self/statm"):
            yield limit - int(line.split()[0]) * resource.getpagesize()


def _lines(path: str | Path) -> list[str]:
    """The lines of a file of the system; none where it does not exist."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


class TensorBytes(TorchDispatchMode):
    """Counts the memory of the tensors that are made in its block, and how much of it there was at most at one time.

    What kernels take for themselves is not seen.

    Attributes:
        peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._known = {}  # weak references by id to storages: those made here, and those that were there before

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise PyTorch imports its whole compiler, for seconds, to keep it away from here

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        self._note((args, kwargs), made_here=False)
        result = func(*args, **kwargs)
        self._note(result, made_here=True)
        self.peak = max(self.peak, self._live)
        return result

    def _note(self, tensors: Any, *, made_here: bool) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._known:
                    size = storage.nbytes() if made_here else 0
                    self._live += size
                    self._known[id(storage)] = weakref.ref(storage, partial(self._forget, id(storage), size))

    def _forget(self, identity: int, size: int, _: weakref.ref) -> None:
        del self._known[identity]
        self._live -= size
