"""Numerical precision of training and upscaling: TF32, autocast and deterministic algorithms."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

AUTOCAST_DTYPE = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
TF32_CAPABILITY = (8, 0)  # minimum compute capability (Ampere)


def resolved(precision: str, device: torch.device) -> str:
    """Replace `auto` by tf32 on a GPU that supports it, else by fp32. Other values are returned unchanged."""
    if precision != "auto":
        return precision
    if device.type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(device) >= TF32_CAPABILITY:
        return "tf32"
    return "fp32"


@contextmanager
def convolutions(*, tf32: bool, autotune: bool) -> Iterator[None]:
    """Context with its own cuDNN settings, for forward and backward passes.

    Args:
        tf32: float32 convolutions may round their inputs to TF32 (10 bits). Matrix products remain float32.
        autotune: time the algorithms for each new shape and use the fastest, which may differ between runs.
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
    """Context in which a GPU computes float32 convolutions and matrix products without TF32, on all threads.

    Autocast, which is set per thread, is not changed.
    """
    # A setting that is off already is not written: PyTorch would compile compiled code again.
    allowed: list[Any] = [
        backend for backend in (torch.backends.cudnn, torch.backends.cuda.matmul) if backend.allow_tf32
    ]
    for backend in allowed:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend in allowed:
            backend.allow_tf32 = True


def use_deterministic_algorithms() -> None:
    """Make all GPU computation of this process bit-exactly reproducible from now on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at the first matrix product
    torch.use_deterministic_algorithms(True)
    # Filling takes time, and nothing here reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def keep_in_autocast_type(frozen: nn.Module, precision: str) -> None:
    """Cast the weights of a frozen network's convolutions and linear layers once, as autocast would at every use."""
    dtype = AUTOCAST_DTYPE[precision]
    if dtype is not None:
        for module in _cast_by_autocast(frozen):
            module.to(dtype)


class WorkingCopy:
    """A copy of a network whose convolutions and linear layers have weights in autocast's dtype.

    `refresh` casts all of them from the network's float32 weights at once; autocast would cast each at every use.
    Other parameters and all buffers are shared with the network.

    Attributes:
        network: the copy; the network itself for a precision without autocast.
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
        """Cast the current weights of the network."""
        if self._casts:
            torch._foreach_copy_(list(self._casts.values()), list(self._casts))

    def leaf_of(self, parameter: nn.Parameter) -> nn.Parameter:
        """The tensor that replaces a parameter of the network in the copy, and receives its gradient."""
        return self._casts.get(parameter, parameter)


def _cast_by_autocast(network: nn.Module) -> list[nn.Module]:
    # Exact types only: a subclass, such as a parametrized module, may use its weight differently.
    return [module for module in network.modules() if type(module) in (nn.Conv2d, nn.Linear)]
