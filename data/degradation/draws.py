"""The random choices of the degradation: what each stage does with a batch.

Sizes, interpolations, the kind of noise and the order at the end are drawn once for a batch, because its images must
keep one size; kernels and strengths are drawn for each image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sed_sr.data.degradation.kernels import (
    gaussian_kernel,
    generalized_gaussian_kernel,
    identity_kernel,
    plateau_kernel,
    sinc_kernel,
    stack_kernels,
)

KERNELS = {
    "identity": identity_kernel,
    "iso": gaussian_kernel,
    "aniso": gaussian_kernel,
    "generalized_iso": generalized_gaussian_kernel,
    "generalized_aniso": generalized_gaussian_kernel,
    "plateau_iso": plateau_kernel,
    "plateau_aniso": plateau_kernel,
    "sinc": sinc_kernel,
}
INTERPOLATIONS = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Stage:
    """Probabilities and ranges of one blur, resize, noise and JPEG; quantities are drawn uniformly from their range.

    Attributes:
        blur_probability: of any blur.
        kernel_px: smallest and largest side of kernels, odd; all odd sides between them are equally likely.
        kernel_kinds: probability of each kind other than sinc: iso, aniso, generalized_iso, generalized_aniso,
            plateau_iso, plateau_aniso.
        sinc_probability: of a sinc kernel, if there is a blur.
        sigma_px: standard deviation of a kernel, along each of its axes.
        beta_generalized, beta_plateau: range of exponents, which contains 1; half of the exponents are below 1 and
            half above (for plateaus in [1, 2], half are 1), as in the released code of Real-ESRGAN.
        resize: probabilities of up, down and keep.
        resize_range: smallest and largest factor; relative to the HR size in the first stage, to the LR size in the
            second.
        gaussian_noise_probability: of Gaussian noise; otherwise it is Poisson noise.
        gaussian_noise_sigma: standard deviation, of 255.
        poisson_noise_scale: factor of the shot noise.
        grey_noise_probability: of noise that is the same in all channels.
        jpeg_quality: as in libjpeg.
    """

    blur_probability: float
    kernel_px: tuple[int, int]
    kernel_kinds: Mapping[str, float]
    sinc_probability: float
    sigma_px: tuple[float, float]
    beta_generalized: tuple[float, float]
    beta_plateau: tuple[float, float]
    resize: Mapping[str, float]
    resize_range: tuple[float, float]
    gaussian_noise_probability: float
    gaussian_noise_sigma: tuple[float, float]
    poisson_noise_scale: tuple[float, float]
    grey_noise_probability: float
    jpeg_quality: tuple[float, float]


@dataclass(frozen=True)
class Kernel:
    """A kernel: its kind, a key of `KERNELS`, and the arguments of that function."""

    kind: str
    arguments: Mapping[str, float | tuple[float, float]]

    def weights(self) -> np.ndarray:
        """(k, k) float64, its sum is 1."""
        return KERNELS[self.kind](**self.arguments)


@dataclass(frozen=True)
class StageDraw:
    """The random choices of a stage for a batch of B images.

    Attributes:
        kernels: one for each image.
        resize_factor: relative to the size that the stage's resize_range refers to.
        interpolation: one of `INTERPOLATIONS`.
        noise: the kind of noise.
        noise_strength: (B,), sigma or scale, depending on the kind.
        grey: (B,) bool.
        jpeg_quality: (B,).
    """

    kernels: Sequence[Kernel]
    resize_factor: float
    interpolation: str
    noise: Literal["Gaussian", "Poisson"]
    noise_strength: np.ndarray
    grey: np.ndarray
    jpeg_quality: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The fields of `StageTensors`, on the host."""
        return stack_weights(self.kernels), self.noise_strength, self.grey, self.jpeg_quality


@dataclass(frozen=True)
class EndDraw:
    """How a batch is brought to its final size: interpolation, B sinc kernels, and whether JPEG comes last."""

    interpolation: str
    kernels: Sequence[Kernel]
    jpeg_last: bool


def draw_stage(stage: Stage, rng: np.random.Generator, *, batch: int) -> StageDraw:
    """Draw the choices of a stage for a batch of this many images."""
    gaussian = rng.random() < stage.gaussian_noise_probability
    return StageDraw(
        kernels=[draw_kernel(stage, rng) for _ in range(batch)],
        resize_factor=_draw_resize_factor(stage, rng),
        interpolation=str(rng.choice(INTERPOLATIONS)),
        noise="Gaussian" if gaussian else "Poisson",
        noise_strength=rng.uniform(*(stage.gaussian_noise_sigma if gaussian else stage.poisson_noise_scale), batch),
        grey=rng.random(batch) < stage.grey_noise_probability,
        jpeg_quality=rng.uniform(*stage.jpeg_quality, batch),
    )


def draw_end(second: Stage, rng: np.random.Generator, *, sinc_probability: float, batch: int) -> EndDraw:
    """Draw the final resize and sinc filter; sinc kernels have the sides of the second stage's kernels."""
    kernels = []
    for _ in range(batch):
        if rng.random() < sinc_probability:
            arguments = {"cutoff": rng.uniform(math.pi / 3, math.pi), "size_px": _draw_side(second, rng)}
            kernels.append(Kernel("sinc", arguments))
        else:
            kernels.append(Kernel("identity", {}))
    return EndDraw(str(rng.choice(INTERPOLATIONS)), kernels, jpeg_last=bool(rng.random() < 0.5))


def draw_kernel(stage: Stage, rng: np.random.Generator) -> Kernel:
    """Draw the blur of one image."""
    if rng.random() >= stage.blur_probability:
        return Kernel("identity", {})
    size_px = _draw_side(stage, rng)
    if rng.random() < stage.sinc_probability:
        # A small kernel cannot represent a low cut-off.
        lowest = math.pi / 3 if size_px < 13 else math.pi / 5
        return Kernel("sinc", {"cutoff": rng.uniform(lowest, math.pi), "size_px": size_px})
    kind = _choose(stage.kernel_kinds, rng)
    sigma_px = rng.uniform(*stage.sigma_px)
    arguments = {"size_px": size_px, "sigma_px": (sigma_px, sigma_px)}
    if kind.endswith("aniso"):
        arguments["sigma_px"] = (sigma_px, rng.uniform(*stage.sigma_px))
        arguments["angle"] = rng.uniform(-math.pi, math.pi)
    if kind.startswith("generalized"):
        arguments["beta"] = _draw_beta(stage.beta_generalized, rng)
    elif kind.startswith("plateau"):
        arguments["beta"] = _draw_beta(stage.beta_plateau, rng)
    return Kernel(kind, arguments)


def _draw_side(stage: Stage, rng: np.random.Generator) -> int:
    smallest, largest = stage.kernel_px
    return int(rng.choice(np.arange(smallest, largest + 1, 2)))


def _draw_beta(ends: tuple[float, float], rng: np.random.Generator) -> float:
    low, high = ends
    return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)


def _draw_resize_factor(stage: Stage, rng: np.random.Generator) -> float:
    smallest, largest = stage.resize_range
    ranges = {"up": (1, largest), "down": (smallest, 1), "keep": (1, 1)}
    return rng.uniform(*ranges[_choose(stage.resize, rng)])


def _choose(probabilities: Mapping[str, float], rng: np.random.Generator) -> str:
    # numpy requires a sum of 1, more exactly than decimal fractions add up to it.
    weights = np.array(list(probabilities.values()))
    return str(rng.choice(list(probabilities), p=weights / weights.sum()))


def stack_weights(kernels: Sequence[Kernel]) -> np.ndarray:
    """(B, k, k) float32: the weights of all kernels."""
    return stack_kernels([kernel.weights() for kernel in kernels])
