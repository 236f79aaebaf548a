"""Count the floating-point operations of convolutions and matrix products."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Counter(TorchDispatchMode):
    """PyTorch's formulas without its FlopCounterMode, whose hooks on modules `torch.autograd.grad` does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        return result


def operations(once: Callable[[], object]) -> int:
    """Of a call, forward and backward passes included. What is compiled or recorded as a graph is not seen."""
    with _Counter() as counter:
        once()
    return counter.operations
