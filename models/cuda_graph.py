"""CUDA graphs: the kernels of a function are recorded once and then replayed by a single call.

Launching a kernel from Python takes longer than most kernels of a training step run. A replay launches all of them.
"""

import gc
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UP_CALLS = 3  # libraries choose kernels and allocate workspaces in the first calls, which cannot be recorded
WAITS = "called a synchronizing CUDA operation"  # of the device; how PyTorch warns of it
MAX_GRAPHS = 8  # of one function; inputs of further shapes are computed without a graph


class Recorder(Protocol):
    """What records a function of tensors: `CudaRecorder`, or a stand-in for it in tests on a CPU."""

    def warm_up(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Any, bool]:
        """Call the function as it is; return its result, and whether it waited for the device."""

    def record(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Callable[[], None], Any]:
        """Return what computes the function on the memory of `inputs`, and the memory of its result."""


class CudaRecorder:
    """Records CUDA graphs that share one memory pool, so that they must not run at the same time.

    The pool cannot be used again after its last graph is gone: take a new recorder then.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Any, bool]:
        self._stream.wait_stream(torch.cuda.current_stream())
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught, torch.cuda.stream(self._stream):
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = function(*inputs)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result, any(WAITS in str(warning.message) for warning in caught)

    def record(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Callable[[], None], Any]:
        gc.collect()  # what is left of earlier steps could hold on to nodes of autograd that run on another stream
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # thread_local: the threads of the loader and of saves go on calling CUDA.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = function(*inputs)
        finally:
            torch.cuda.set_stream(current)  # which older PyTorch does not where a recording fails
        return graph.replay, result


class GraphedFunction:
    """A function of tensors that is recorded for each signature of its inputs, and replayed from then on.

    The first calls with a signature run the function as it is. They are ordinary calls, whose effects count: a function
    that changes weights changes them once a call, whether it is recorded or not. Inputs are copied into the memory that
    was recorded; a result stays valid until the next call.

    What the function does besides device work, in Python, happens while it is recorded and not in replays.

    Args:
        function: takes tensors; returns a tensor or nothing. It must not wait for the device.
        name: of what it computes, for the warning.
        recorder: records it. Functions with one recorder share memory and must not run at the same time.
        warn: called with one sentence if the function cannot be recorded. It then runs as it is.
    """

    def __init__(
        self, function: Callable[..., Any], *, name: str, recorder: Recorder, warn: Callable[[str], None]
    ) -> None:
        self._function, self._name, self._recorder, self._warn = function, name, recorder, warn
        self._calls = Counter()  # by signature
        self._recordings = {}  # signature -> inputs, replay, result
        self._possible = True

    def __call__(self, *inputs: Tensor) -> Any:
        signature = tuple((value.shape, value.stride(), value.dtype) for value in inputs)
        if signature not in self._recordings:
            if not self._possible or len(self._recordings) == MAX_GRAPHS:
                return self._function(*inputs)
            if self._calls[signature] < WARM_UP_CALLS:
                self._calls[signature] += 1
                result, waited = self._recorder.warm_up(self._function, inputs)
                if waited and self._calls[signature] == WARM_UP_CALLS:  # at first, libraries may
                    self._give_up("it waits for the device")
                return result
            self._record(signature, inputs)
            if not self._possible:
                return self._function(*inputs)
        recorded_inputs, replay, result = self._recordings[signature]
        for recorded, given in zip(recorded_inputs, inputs, strict=True):
            recorded.copy_(given, non_blocking=True)
        replay()
        return result

    def forget(self, recorder: Recorder) -> None:
        """Give up the recordings and their memory; another recorder records anew what is called again."""
        self._recorder = recorder
        self._recordings.clear()

    def _give_up(self, reason: str) -> None:
        self._possible = False
        self._warn(f"{self._name} cannot be recorded as a CUDA graph, and runs slower without one ({reason})")

    def _record(self, signature: tuple, inputs: tuple[Tensor, ...]) -> None:
        inputs = tuple(value.clone() for value in inputs)
        try:
            self._recordings[signature] = (inputs, *self._recorder.record(self._function, inputs))
        except RuntimeError as error:
            # The end of a recording that was broken off raises an error of its own.
            self._give_up(str(error.__context__ or error).strip().partition("\n")[0])
