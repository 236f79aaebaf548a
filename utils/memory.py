"""How much memory a computation took, and whether it was too much."""

import os
import resource
import sys

import torch

# What PyTorch's allocator says on a CPU, on Linux and on Windows, and oneDNN; on a GPU there is a class for it.
CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_OUT_OF_MEMORY)


def peak_bytes(device: torch.device) -> int:
    """Largest so far: of a GPU's allocations, or of the process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes


def total_bytes(device: torch.device) -> int:
    """All that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
