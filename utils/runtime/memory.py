"""Memory: how much is free, how much a computation takes, and whether it was too much."""

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

# Messages of PyTorch's CPU allocator (Linux, Windows) and of oneDNN, which have no exception class of their own.
CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a GPU or the CPU ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_OUT_OF_MEMORY)


def unless_out_of_memory(compute: Callable[[], T]) -> T | None:
    """Return the result of `compute`, or None if it ran out of memory."""
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Not in the handler: there, the traceback of the error still keeps its tensors alive.
    torch.cuda.empty_cache()
    return None


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: of PyTorch's allocations on a GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes


def disable_malloc_trim() -> None:
    """Let this process keep freed CPU memory for later tensors.

    Every training step allocates and frees the same gigabytes. The C library would return large blocks to the system,
    which clears them at each allocation. This has no effect with other C libraries than glibc.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, -1)  # never
        library.mallopt(M_MMAP_THRESHOLD, 2**30)


def total_bytes(device: torch.device) -> int:
    """Total memory of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still allocate on a GPU, or on the machine within the limits set for the process.

    `psutil` knows the free memory of the machine, but not the limit of a container or of a cluster job.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch
        return torch.cuda.mem_get_info(device)[0] + cached
    return max(0, min((total_bytes(device), *_available_bytes(), *_cgroup_bytes(), *_address_space_bytes())))


def _available_bytes() -> Iterator[int]:
    """Memory of the machine that is available without swapping; nothing on systems other than Linux."""
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _cgroup_bytes(root: Path = Path("/sys/fs/cgroup"), membership: str = "/proc/self/cgroup") -> Iterator[int]:
    """What is left of the limit of each control group (version 1 or 2) of this process: of a container, of a job.

    The file cache is freed before a group runs out of memory and does not count as used.
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
        # In a container, the path may be that of the host. Then only the root folder exists, which is the container's.
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            numbers = [*_lines(folder / limit), *_lines(folder / used)]
            if len(numbers) == 2 and numbers[0].isdigit():  # "max": no limit
                counts = dict(line.split() for line in _lines(folder / "memory.stat"))
                files = sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                yield int(numbers[0]) - int(numbers[1]) + files


def _address_space_bytes() -> Iterator[int]:
    """What is left of the limit of this process (`ulimit -v`), if one is set."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        for line in _lines("/proc/self/statm"):
            yield limit - int(line.split()[0]) * resource.getpagesize()


def _lines(path: str | Path) -> list[str]:
    """The lines of a system file; none if it cannot be read."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


class TensorBytes(TorchDispatchMode):
    """Counts the memory of all tensors that are created in its block. Work space of kernels is not included.

    Attributes:
        peak: the most bytes that were alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._known = {}  # id of a storage -> weak reference; also storages from before the block, with size 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # with True, PyTorch imports its compiler, which takes seconds

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        self._count((args, kwargs), created=False)
        result = func(*args, **kwargs)
        self._count(result, created=True)
        self.peak = max(self.peak, self._live)
        return result

    def _count(self, tensors: Any, *, created: bool) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._known:
                    size = storage.nbytes() if created else 0
                    self._live += size
                    self._known[id(storage)] = weakref.ref(storage, partial(self._forget, id(storage), size))

    def _forget(self, identity: int, size: int, _: weakref.ref) -> None:
        del self._known[identity]
        self._live -= size
