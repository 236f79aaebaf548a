"""Learning rate schedules: factors as pure functions of the number of steps done, so that a run can resume anywhere."""

import math
from bisect import bisect_right
from collections.abc import Sequence


def stepwise(steps_done: int, *, milestones: Sequence[int], decay: float) -> float:
    """`decay` to the power of the number of milestones reached. `milestones` must be ascending."""
    return decay ** bisect_right(milestones, steps_done)


def cosine(steps_done: int, *, total_steps: int) -> float:
    """From 1 to 0 along half a cosine: Loshchilov & Hutter, "SGDR", ICLR 2017, equation 5, without restarts."""
    return (1 + math.cos(math.pi * min(steps_done / total_steps, 1))) / 2


def warmup(steps_done: int, *, warmup_steps: int) -> float:
    """Linear increase to 1 at step `warmup_steps`, then 1: Goyal et al. 2017, section 2.2."""
    return min(1.0, (steps_done + 1) / (warmup_steps + 1))
