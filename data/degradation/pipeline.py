"""The second-order degradation of Real-ESRGAN, applied to a batch.

All random choices are drawn (`draws.py`) before the first operation, and copied to the device together, so that the
host never waits for a GPU.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sed_sr.data.degradation.jpeg import jpeg
from sed_sr.data.degradation.kernels import (
    blur,
    gaussian_kernel,
    generalized_gaussian_kernel,
    identity_kernel,
    plateau_kernel,
    sinc_kernel,
    stack_kernels,
)
from sed_sr.data.degradation.noise import gaussian_noise, poisson_noise
from sed_sr.data.tensors import to_array, to_float, to_tensor, to_uint8

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
        return _stack(self.kernels), self.noise_strength, self.grey, self.jpeg_quality


class StageTensors(NamedTuple):
    """The parts of a `StageDraw` that are needed on the device, float32: (B, k, k) kernels, the others (B,)."""

    kernels: Tensor
    noise_strength: Tensor
    grey: Tensor
    jpeg_quality: Tensor


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


def _ignore(title: str, image: Tensor) -> None:
    """Trace nothing."""


class Degradation:
    """Makes LR from HR by two stages of blur, resize, noise and JPEG (Real-ESRGAN, section 3, Fig. 2).

    The JPEG of the second stage comes before or after the final resize and sinc filter, with equal probability.

    Args:
        first, second: the stages.
        final_sinc_probability: of a sinc filter at the end.
        scale: HR side / LR side.
    """

    def __init__(self, *, first: Stage, second: Stage, final_sinc_probability: float, scale: int = 4) -> None:
        self.first = first
        self.second = second
        self.final_sinc_probability = final_sinc_probability
        self.scale = scale

    @torch.no_grad()
    def __call__(
        self, hr: Tensor, *, rng: np.random.Generator, trace: Callable[[str, Tensor], None] = _ignore
    ) -> Tensor:
        """Make LR from HR. On one kind of device, it depends on the state of `rng` and on `hr` alone.

        Args:
            hr: (B, 3, H, W) float32 in [0, 1], sides multiples of the scale.
            rng: source of all choices and of the seed of the noise.
            trace: called after each operation with a title, which has the drawn values in brackets, and the images
                (B, 3, ., .), which may lie outside [0, 1].

        Returns:
            (B, 3, H / scale, W / scale) float32 in [0, 1], multiples of 1/255.
        """
        batch, _, height, width = hr.shape
        assert height % self.scale == width % self.scale == 0, hr.shape
        first = draw_stage(self.first, rng, batch=batch)
        second = draw_stage(self.second, rng, batch=batch)
        end = draw_end(self.second, rng, sinc_probability=self.final_sinc_probability, batch=batch)
        generator = torch.Generator(hr.device).manual_seed(int(rng.integers(2**63)))
        lr_size = height // self.scale, width // self.scale
        end_kernels, *tensors = _to_device([_stack(end.kernels), *first.arrays(), *second.arrays()], hr.device)
        stages = {"first": StageTensors(*tensors[:4]), "second": StageTensors(*tensors[4:])}

        def done(title: str, images: Tensor) -> Tensor:
            trace(title, images)
            return images

        def blur_resize_noise(name: str, images: Tensor, draw: StageDraw, size: tuple[int, int]) -> Tensor:
            height, width = (max(1, round(side * draw.resize_factor)) for side in size)
            images = done(f"{name} blur ({_kinds(draw.kernels)})", blur(images, stages[name].kernels))
            images = done(
                f"{name} resize ({draw.interpolation}, {height}x{width})",
                _resize(images, (height, width), draw.interpolation),
            )
            strengths = ", ".join(f"{strength:.2g}" for strength in draw.noise_strength)
            return done(f"{name} noise ({draw.noise}, {strengths})", add_noise(name, images, draw))

        def add_noise(name: str, images: Tensor, draw: StageDraw) -> Tensor:
            strength, grey = stages[name].noise_strength, stages[name].grey.bool()
            if draw.noise == "Gaussian":
                return gaussian_noise(images, sigma=strength, grey=grey, generator=generator)
            return poisson_noise(images, scale=strength, grey=grey, generator=generator)

        def shrink(images: Tensor) -> Tensor:
            images = done(
                "final resize ({}, {}x{})".format(end.interpolation, *lr_size),
                _resize(images, lr_size, end.interpolation),
            )
            return done(f"final sinc ({_kinds(end.kernels)})", blur(images, end_kernels))

        def compress(name: str, images: Tensor, draw: StageDraw) -> Tensor:
            qualities = ", ".join(f"{each:.0f}" for each in draw.jpeg_quality)
            compressed = jpeg(images.clamp(0, 1), stages[name].jpeg_quality)
            return done(f"{name} JPEG (quality {qualities})", compressed)

        images = blur_resize_noise("first", hr, first, (height, width))
        images = compress("first", images, first)
        images = blur_resize_noise("second", images, second, lr_size)
        if end.jpeg_last:
            images = compress("second", shrink(images), second)
        else:
            images = shrink(compress("second", images, second))
        return done("LR", (images.clamp(0, 1) * 255).round() / 255)


def degrade_image(degradation: Degradation, hr: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """HR (H, W, 3) uint8, sides multiples of the scale -> LR (H / scale, W / scale, 3) uint8, on the CPU."""
    lr = degradation(to_float(to_tensor(hr))[None], rng=rng)
    return to_array(to_uint8(lr[0]))


def _kinds(kernels: Sequence[Kernel]) -> str:
    return ", ".join(kernel.kind.replace("_", " ") for kernel in kernels)


def _stack(kernels: Sequence[Kernel]) -> np.ndarray:
    return stack_kernels([kernel.weights() for kernel in kernels])


def _to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays -> float32 tensors of the same shapes, copied as one buffer without waiting for the device."""
    packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays], dtype=np.float32))
    if device.type == "cuda":
        packed = packed.pin_memory()
    parts = packed.to(device, non_blocking=True).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _resize(images: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    # Without antialiasing, as in the released code of Real-ESRGAN.
    return F.interpolate(images, size, mode=interpolation)
