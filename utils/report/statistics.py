"""How far chance goes in a mean over images: papers print means alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
FEWEST_IMAGES = 5  # for an interval; fewer do not tell how differences scatter
RESAMPLES = 9_999
RESAMPLES_AT_ONCE = 1_000  # bounds the memory that thousands of images take


@dataclass(frozen=True)
class Comparison:
    """The differences of two series of scores of the same images, other - baseline."""

    images: int
    mean: float
    interval: tuple[float, float] | None  # 95 % bootstrap interval of the mean; None of fewer than 5 images

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does: the two are not equal, as far as these images can tell."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean: the sample's standard deviation over the root of its size.

    Returns:
        None for a single value, and where one is not finite (PSNR of identical images).
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    from scipy import stats  # takes half a second, which a command that never compares need not wait

    return float(stats.sem(values))


def compare(baseline: Sequence[float], other: Sequence[float]) -> Comparison:
    """Paired comparison: mean of the differences, image by image, with its BCa bootstrap interval (Efron, 1987).

    Paired, because images differ in difficulty far more than networks do in quality. The interval is the same in every
    call. Few images tell little of how differences scatter: of normal ones, the intervals from five images (Set5) hold
    the true mean in 86 % of cases rather than 95 %, those from a hundred in 94 %; fewer than five give none. Equal
    scores differ by 0, infinite ones too.

    Args:
        baseline, other: scores of the same images in the same order, at least one.
    """
    differences = np.array([0.0 if a == b else b - a for a, b in zip(baseline, other, strict=True)])
    with np.errstate(invalid="ignore"):  # the mean of inf and -inf is not a number, and no reason to warn
        mean = float(differences.mean())
    return Comparison(len(differences), mean, _bootstrap_interval(differences))


def _bootstrap_interval(differences: np.ndarray) -> tuple[float, float] | None:
    if len(differences) < FEWEST_IMAGES or not np.isfinite(differences).all():
        return None
    if np.ptp(differences) == 0:  # which leaves nothing to resample
        return float(differences[0]), float(differences[0])
    from scipy import stats

    result = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=RESAMPLES_AT_ONCE,
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
