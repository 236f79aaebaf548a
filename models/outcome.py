"""What came of a training step, read without holding up the steps after it."""

from collections.abc import Collection, Sequence
from functools import cached_property

import torch
from torch import Tensor

FIGURES = 32  # room for the terms of a step, behind one number that says whether a process wants to stop


class Outcome:
    """What came of one step. Its numbers are on their way from the device; reading them waits for that step alone.

    Args:
        report: on the device, valid until the next step: the figures of this process, the figures of all processes,
            (FIGURES,) each, the norms of the gradients, and the loss scale.
        terms: names of the figures from the second one on; `losses` are some of them.
        norms: names of the norms.
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
        if self._copied is not None:
            self._copied.synchronize()
        here, everywhere, rest = self._report.split((FIGURES, FIGURES, len(self._norms) + 1))
        return here.tolist(), everywhere.tolist(), rest.tolist()

    @property
    def terms(self) -> dict[str, float]:
        """Means over all batches of all processes, and the norms of both networks' gradients before clipping."""
        _, everywhere, rest = self._numbers
        return dict(zip((*self._terms, *self._norms), (*everywhere[1 : 1 + len(self._terms)], *rest[:-1]), strict=True))

    @property
    def broken(self) -> tuple[str, ...]:
        """Losses and gradient norms that are not finite on some process. Where there are any, nothing was updated.

        Not among them: gradients alone that overflowed under a loss scale (fp16) above 1, which is lowered then.
        """
        broken = tuple(name for name in (*self._losses, *self._norms) if not _is_finite(self.terms[name]))
        _, _, (*_, loss_scale) = self._numbers
        return () if loss_scale > 1 and set(broken) <= set(self._norms) else broken

    @property
    def broken_here(self) -> tuple[str, ...]:
        """The losses among `broken` that are not finite on this process."""
        here = dict(zip(self._terms, self._numbers[0][1:], strict=False))
        return tuple(name for name in self.broken if name in here and not _is_finite(here[name]))

    @property
    def stop_requested(self) -> bool:
        """Whether some process gave `stop` to this step."""
        return self._numbers[1][0] > 0


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
