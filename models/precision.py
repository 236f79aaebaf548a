"""The arithmetic of training and of upscaling: what `precision` means."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

AUTOCAST_DTYPE = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TF32_CAPABILITY = (8, 0)  # of the first NVIDIA GPUs with TF32 (Ampere)


def resolved(precision: str, device: torch.device) -> str:
    """The precision that `auto` stands for on a device: tf32 on a GPU that has it, else fp32; others as they are."""
    if precision != "auto":
        return precision
    if device.type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(device) >= TF32_CAPABILITY:
        return "tf32"
    return "fp32"


@contextmanager
def convolutions(*, tf32: bool, autotune: bool) -> Iterator[None]:
    """A block with its own settings of cuDNN, which hold in forward and backward passes.

    Args:
        tf32: float32 convolutions may round their inputs to TF32 (10 bits). Matrix products stay float32.
        autotune: time the algorithms for each new shape and take the fastest, which may differ from run to run.
    """
    settings = torch.backends.cudnn
    before = settings.allow_tf32, settings.benchmark
    settings.allow_tf32, settings.benchmark = tf32, autotune
    try:
        yield
    finally:
        settings.allow_tf32, settings.benchmark = before


@contextmanager
def without_tf32() -> Iterator[None]:
    """A block in which a GPU computes float32 convolutions and matrix products in float32, on all threads.

    Autocast is not switched off: it belongs to a thread, and whoever wants it enters it inside the block.
    """
    # What is off already is not written: PyTorch would note it as chosen, and compiled code is compiled again for that.
    allowed = [backend for backend in (torch.backends.cudnn, torch.backends.cuda.matmul) if backend.allow_tf32]
    for backend in allowed:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend in allowed:
            backend.allow_tf32 = True


def use_deterministic_algorithms() -> None:
    """Let everything that this process computes on a GPU from now on be the same in each run, bit for bit."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read before the first matrix product
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # takes time, and nothing reads such memory


def keep_in_autocast_type(frozen: nn.Module, precision: str) -> None:
    """Convert the weights of a frozen network's convolutions and linear layers as autocast would at every use."""
    dtype = AUTOCAST_DTYPE[precision]
    if dtype is not None:
        for module in _cast_by_autocast(frozen):
            module.to(dtype)


class WorkingCopy:
    """A copy of a network to compute with: its convolutions and linear layers have weights in the type of autocast.

    `refresh` casts them from the network's float32 weights, all at once; autocast would cast each of them at each use.
    All other parameters and all buffers are the network's own.

    Attributes:
        network: the copy; the network itself where the precision has no autocast.
    """

    def __init__(self, network: nn.Module, precision: str) -> None:
        self.network, self._casts = network, {}  # master weight -> its cast
        dtype = AUTOCAST_DTYPE[precision]
        if dtype is not None:
            for module in _cast_by_autocast(network):
                for weight in module.parameters(recurse=False):
                    self._casts[weight] = nn.Parameter(weight.detach().to(dtype))
            own = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
            replaced = {id(weight): cast for weight, cast in self._casts.items()}
            self.network = copy.deepcopy(network, {**own, **replaced})

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the weights of the network as they are now."""
        if self._casts:
            torch._foreach_copy_(list(self._casts.values()), list(self._casts))

    def leaf_of(self, parameter: nn.Parameter) -> nn.Parameter:
        """What stands for a parameter of the network in the copy, and has its gradient."""
        return self._casts.get(parameter, parameter)


def _cast_by_autocast(network: nn.Module) -> list[nn.Module]:
    # A subclass may do more with its weight; a parametrized module is one.
    return [module for module in network.modules() if type(module) in (nn.Conv2d, nn.Linear)]
