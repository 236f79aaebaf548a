"""The focal frequency loss: Jiang et al., ICCV 2021."""

import torch
from torch import Tensor


def focal_frequency_loss(sr: Tensor, hr: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Squared distance of the spectra of SR and HR, weighted by frequency: large where the distance is large.

    Equation 9, with the weights of equation 8, |F_sr(u, v) - F_hr(u, v)|^alpha, divided by their maximum over the
    frequencies of an image's channel. No gradient flows through the weights. Computed in float32.

    Args:
        sr, hr: (B, 3, H, W) float in [0, 1].
        alpha: focus on frequencies with large distances; 0: all have weight 1.

    Returns:
        The mean over frequencies, channels and images, a scalar.
    """
    # The transform is linear. In float16, cuFFT would need powers of two.
    spectrum = torch.fft.fft2(sr.float() - hr.float(), norm="ortho")
    distance = spectrum.real.square() + spectrum.imag.square()
    weight = distance.detach() ** (alpha / 2)
    maximum = weight.amax(dim=(-2, -1), keepdim=True)
    return (weight / maximum.clamp(min=torch.finfo(weight.dtype).tiny) * distance).mean()
