"""The results of a training step: gradients and scalars in one tensor on the device, and their copy on the host.

One tensor holds the gradients of all networks and the scalars of the step (loss terms and statistics). It is cleared,
measured and summed over processes by a single operation each.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # numbers; kernels read aligned memory faster
SCALARS = 32  # maximum number of scalars of a step; the first one says whether a process asks the run to stop


class FlatGradients:
    """Float32 gradients of the parameters of several networks, followed by scalars, in one tensor.

    Attributes:
        all: (N,), the whole tensor.
        scalars: (number of scalars,), a view of its end.
    """

    def __init__(self, networks: Mapping[str, Sequence[nn.Parameter]], *, scalars: int) -> None:
        """Allocate the tensor for the trained parameters of each network, which must not be moved afterwards."""
        sizes = [_aligned(parameter.numel()) for parameters in networks.values() for parameter in parameters]
        device = next(iter(networks.values()))[0].device
        self.all = torch.zeros(sum(sizes) + scalars, device=device)
        self.scalars = self.all[sum(sizes) :]
        self._networks = {name: list(parameters) for name, parameters in networks.items()}
        self._of, self._views, self._pieces, self._orders = {}, {}, {}, {}
        start = 0
        for name, parameters in self._networks.items():
            first = start
            self._views[name], self._pieces[name] = [], []
            # The dimensions of each parameter, in the order in which they lie in memory.
            self._orders[name] = [sorted(range(p.dim()), key=p.stride, reverse=True) for p in parameters]
            for parameter in parameters:
                # With the parameter's strides, because optimisers are fastest on equal layouts.
                self._views[name].append(self.all.as_strided(parameter.shape, parameter.stride(), start))
                self._pieces[name].append(self.all[start : start + parameter.numel()])
                start += _aligned(parameter.numel())
            self._of[name] = self.all[first:start]

    def clear(self) -> None:
        """Set gradients and scalars to zero."""
        self.all.zero_()

    def add(self, name: str, objective: Tensor, leaves: Sequence[Tensor] | None = None) -> None:
        """Add the gradient of a scalar objective with respect to the parameters of a network.

        Args:
            leaves: the tensors that the objective was computed with instead of the parameters, of any dtype.
        """
        gradients = torch.autograd.grad(objective, leaves or self._networks[name], materialize_grads=True)
        # Flattened in memory order: no copy for gradients with the layout of their parameters.
        flat = [g.permute(order).reshape(-1) for g, order in zip(gradients, self._orders[name], strict=True)]
        torch._foreach_add_(self._pieces[name], _to_float32(flat))

    def norm(self, name: str) -> Tensor:
        """The L2 norm of a network's gradient over all parameters, a scalar."""
        return torch.linalg.vector_norm(self._of[name])

    def scale(self, name: str, factor: Tensor) -> None:
        """Multiply a network's gradient by a scalar."""
        self._of[name].mul_(factor)

    def assign_grads(self) -> None:
        """Set the `.grad` of all parameters, which optimisers read, to views of this tensor."""
        for name, parameters in self._networks.items():
            for parameter, view in zip(parameters, self._views[name], strict=True):
                parameter.grad = view


class Outcome:
    """The scalars of one step, copied to the host asynchronously. Reading them waits for this step only.

    Args:
        report: on the device, valid until the next step: the scalars of this process, their sums over all processes,
            (SCALARS,) each, the gradient norms, and the loss scale.
        terms: names of the scalars from the second one on; `losses` are some of them.
        norms: names of the gradient norms.
    """

    def __init__(self, report: Tensor, *, terms: Sequence[str], losses: Collection[str], norms: Sequence[str]) -> None:
        self._terms, self._losses, self._norms = terms, losses, norms
        self._report = report.to("cpu", non_blocking=True, copy=True)
        self._copied = None
        if report.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    @cached_property
    def _numbers(self) -> tuple[list[float], list[float], list[float]]:
        """Scalars of this process; scalars of all processes; gradient norms and loss scale."""
        if self._copied is not None:
            self._copied.synchronize()
        here, everywhere, rest = self._report.split((SCALARS, SCALARS, len(self._norms) + 1))
        return here.tolist(), everywhere.tolist(), rest.tolist()

    @property
    def terms(self) -> dict[str, float]:
        """Means over all batches of all processes, and the norms of both networks' gradients before clipping."""
        _, everywhere, rest = self._numbers
        return dict(zip((*self._terms, *self._norms), (*everywhere[1 : 1 + len(self._terms)], *rest[:-1]), strict=True))

    @property
    def broken(self) -> tuple[str, ...]:
        """Losses and gradient norms that are not finite on some process. If there are any, nothing was updated.

        Empty if only gradients overflowed under an fp16 loss scale above 1: the scaler lowers it, and training goes on.
        """
        broken = tuple(name for name in (*self._losses, *self._norms) if not math.isfinite(self.terms[name]))
        _, _, (*_, loss_scale) = self._numbers
        return () if loss_scale > 1 and set(broken) <= set(self._norms) else broken

    @property
    def broken_here(self) -> tuple[str, ...]:
        """The losses among `broken` that are not finite on this process."""
        here = dict(zip(self._terms, self._numbers[0][1:], strict=False))
        return tuple(name for name in self.broken if name in here and not math.isfinite(here[name]))

    @property
    def stop_requested(self) -> bool:
        """Whether a process called this step with `stop=True`."""
        return self._numbers[1][0] > 0


def _aligned(count: int) -> int:
    return math.ceil(count / ALIGNMENT) * ALIGNMENT


def _to_float32(gradients: list[Tensor]) -> list[Tensor]:
    """Cast all gradients of other dtypes by one operation."""
    others = [gradient for gradient in gradients if gradient.dtype != torch.float32]
    if not others:
        return gradients
    cast = [torch.empty_like(gradient, dtype=torch.float32) for gradient in others]
    torch._foreach_copy_(cast, others)
    cast = iter(cast)
    return [gradient if gradient.dtype == torch.float32 else next(cast) for gradient in gradients]
