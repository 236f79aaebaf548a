"""CUDA graphs: record the kernels of a function once, then replay all of them by a single call.

Most kernels of a training step take less time than launching them from Python.
"""

import gc
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UP_CALLS = 3  # cannot be recorded, because libraries choose kernels and allocate workspaces in them
SYNC_WARNING = "called a synchronizing CUDA operation"  # part of PyTorch's warning
MAX_GRAPHS = 8  # per function; inputs with further shapes are computed without a graph


class Recorder(Protocol):
    """Records a function of tensors: `CudaRecorder`, or a stand-in for it in tests on a CPU."""

    def warm_up(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Any, bool]:
        """Call the function without recording. Return its result, and whether it waited for the device."""
        ...

    def record(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Callable[[], None], Any]:
        """Record the function on the memory of `inputs`. Return a function that replays it, and the result's memory."""
        ...


class CudaRecorder:
    """Records CUDA graphs that share one memory pool and therefore must not run concurrently.

    The pool cannot be reused after its last graph is deleted: make a new recorder then.
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
        return result, any(SYNC_WARNING in str(warning.message) for warning in caught)

    def record(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Callable[[], None], Any]:
        gc.collect()  # objects of earlier steps may hold autograd nodes that use another stream
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # thread_local: loader and checkpoint threads call CUDA during the recording.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = function(*inputs)
        finally:
            torch.cuda.set_stream(current)  # older PyTorch does not restore it if a recording fails
        return graph.replay, result


class GraphedFunction:
    """A function of tensors that is recorded for each signature (shapes, strides, dtypes) of its inputs, then replayed.

    The first calls with a signature call the function itself. Every call has the function's effects exactly once: a
    function that updates weights updates them once per call, recorded or not. Inputs are copied into the recorded
    memory; a result is valid until the next call.

    Python side effects of the function occur when it is recorded, and not in replays.

    Args:
        function: takes tensors; returns a tensor or None. It must not wait for the device.
        name: what it computes, for the warning.
        recorder: records it. Functions with the same recorder share memory and must not run concurrently.
        warn: called with a message if the function cannot be recorded. The function itself is called from then on.
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
                if waited and self._calls[signature] == WARM_UP_CALLS:  # libraries may wait in earlier calls
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
        """Delete all recordings and their memory. Later calls are recorded again, by `recorder`."""
        self._recorder = recorder
        self._recordings.clear()

    def _give_up(self, reason: str) -> None:
        self._possible = False
        self._warn(f"{self._name} cannot be recorded as a CUDA graph and runs slower without it ({reason})")

    def _record(self, signature: tuple, inputs: tuple[Tensor, ...]) -> None:
        inputs = tuple(value.clone() for value in inputs)
        try:
            self._recordings[signature] = (inputs, *self._recorder.record(self._function, inputs))
        except RuntimeError as error:
            # Ending a failed recording raises a second error; the first one has the reason.
            self._give_up(str(error.__context__ or error).strip().partition("\n")[0])
