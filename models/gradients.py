"""The gradients of all networks in one piece of memory, to clear, measure and sum them over processes at once."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # numbers; kernels read aligned memory faster


class FlatGradients:
    """Float32 gradients of the parameters of several networks, and a few figures, one after the other.

    Attributes:
        all: (N,), everything.
        figures: (number of figures,), the end of it.
    """

    def __init__(self, networks: Mapping[str, Sequence[nn.Parameter]], *, figures: int) -> None:
        """Memory for the gradients of the networks' parameters, which stay where they are from now on."""
        sizes = [_aligned(parameter.numel()) for parameters in networks.values() for parameter in parameters]
        device = next(iter(networks.values()))[0].device
        self.all = torch.zeros(sum(sizes) + figures, device=device)
        self.figures = self.all[sum(sizes) :]
        self._networks = {name: list(parameters) for name, parameters in networks.items()}
        self._of, self._views, self._pieces, self._orders = {}, {}, {}, {}
        start = 0
        for name, parameters in self._networks.items():
            first = start
            self._views[name], self._pieces[name] = [], []
            # Dimensions in the order in which a parameter's numbers lie in memory.
            self._orders[name] = [sorted(range(p.dim()), key=p.stride, reverse=True) for p in parameters]
            for parameter in parameters:
                # Like the parameter in memory, because optimisers are fastest on equal layouts.
                self._views[name].append(self.all.as_strided(parameter.shape, parameter.stride(), start))
                self._pieces[name].append(self.all[start : start + parameter.numel()])
                start += _aligned(parameter.numel())
            self._of[name] = self.all[first:start]

    def clear(self) -> None:
        """Set gradients and figures to zero."""
        self.all.zero_()

    def add(self, name: str, objective: Tensor, leaves: Sequence[Tensor] | None = None) -> None:
        """Add the gradient of a scalar with respect to the parameters of a network.

        Args:
            leaves: what the objective was computed with in place of the parameters, perhaps in another type.
        """
        gradients = torch.autograd.grad(objective, leaves or self._networks[name], materialize_grads=True)
        # Flattened as in memory: views of gradients that have the layout of their parameters.
        flat = [g.permute(order).reshape(-1) for g, order in zip(gradients, self._orders[name], strict=True)]
        torch._foreach_add_(self._pieces[name], _in_float32(flat))

    def norm(self, name: str) -> Tensor:
        """The norm of a network's gradient over all parameters, a scalar."""
        return torch.linalg.vector_norm(self._of[name])

    def scale(self, name: str, factor: Tensor) -> None:
        """Multiply a network's gradient by a scalar."""
        self._of[name].mul_(factor)

    def hand_over(self) -> None:
        """Let the parameters' `.grad`, where optimisers look for gradients, be views of this memory."""
        for name, parameters in self._networks.items():
            for parameter, view in zip(parameters, self._views[name], strict=True):
                parameter.grad = view


def _aligned(count: int) -> int:
    return math.ceil(count / ALIGNMENT) * ALIGNMENT


def _in_float32(gradients: list[Tensor]) -> list[Tensor]:
    """The same in float32, all of them cast at once."""
    others = [gradient for gradient in gradients if gradient.dtype != torch.float32]
    if not others:
        return gradients
    cast = [torch.empty_like(gradient, dtype=torch.float32) for gradient in others]
    torch._foreach_copy_(cast, others)
    cast = iter(cast)
    return [gradient if gradient.dtype == torch.float32 else next(cast) for gradient in gradients]
