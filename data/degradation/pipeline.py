"""The second-order degradation of Real-ESRGAN, applied to a batch.

All random choices are drawn (`data.degradation.draws`) before the first operation and copied to the device together, so
that the host never waits for a GPU.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sed_sr.data.degradation.draws import Kernel, Stage, StageDraw, draw_end, draw_stage, stack_weights
from sed_sr.data.degradation.jpeg import jpeg
from sed_sr.data.degradation.kernels import blur
from sed_sr.data.degradation.noise import gaussian_noise, poisson_noise
from sed_sr.data.tensors import to_array, to_float, to_tensor, to_uint8


class StageTensors(NamedTuple):
    """The parts of a `StageDraw` that are needed on the device, float32: (B, k, k) kernels, the others (B,)."""

    kernels: Tensor
    noise_strength: Tensor
    grey: Tensor
    jpeg_quality: Tensor


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
        end_kernels, *tensors = _to_device([stack_weights(end.kernels), *first.arrays(), *second.arrays()], hr.device)
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
