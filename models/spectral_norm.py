"""Spectral normalisation of convolutions: Miyato et al., "Spectral Normalization for GANs", ICLR 2018, algorithm 1.

Equivalent to `torch.nn.utils.parametrizations.spectral_norm`, with the same state dict and the same random draws.
PyTorch's needs more operations, copies channels_last weights, and computes in bfloat16 under CUDA's autocast.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils import parametrize

INITIAL_ITERATIONS = 15


def spectral_norm(layer: nn.Conv2d) -> nn.Conv2d:
    """Divide the weight of a convolution by its largest singular value whenever it is used. Returns the layer.

    The weight counts as a matrix (out, in * k * k). Each forward pass in training mode does one power iteration, also
    while G is trained through a frozen D. In evaluation mode there is none.
    """
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


class SpectralNorm(nn.Module):
    """Parametrization W -> W / sigma.

    Buffers:
        _u: (out,), left singular vector.
        _v: (in * k * k,), right singular vector.
    """

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        out_channels, *rest = weight.shape
        self.register_buffer("_u", F.normalize(weight.new_empty(out_channels).normal_(), dim=0))
        self.register_buffer("_v", F.normalize(weight.new_empty(rest).normal_().flatten(), dim=0))
        for _ in range(INITIAL_ITERATIONS):
            self._power_iteration(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in, k, k) -> the same shape and memory format."""
        if weight.is_meta:  # no values, and autocast does not support the device
            return weight
        with torch.autocast(weight.device.type, enabled=False):
            u, v, sigma = self._power_iteration(weight) if self.training else self._singular_vectors(weight)
            return _DivideBySigma.apply(weight, u, v, sigma)

    @torch.no_grad()
    def _power_iteration(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Update the buffers in place. Returns new tensors: u, v in the order of `_matrix`, sigma."""
        matrix = _matrix(weight)
        wv = torch.mv(matrix, _channels_last(self._v, weight))
        u = wv / torch.linalg.vector_norm(wv)
        wu = torch.mv(matrix.T, u)
        sigma = torch.linalg.vector_norm(wu)  # = u^T W v, because v = W^T u / |W^T u|
        v = wu / sigma
        self._u.copy_(u)
        _, channels, height, width = weight.shape
        self._v.view(channels, height, width).copy_(v.view(height, width, channels).permute(2, 0, 1))
        return u, v, sigma

    @torch.no_grad()
    def _singular_vectors(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same without an iteration, from the current buffers."""
        # Copies, because the next power iteration may change the buffers before the backward pass.
        u, v = self._u.clone(), _channels_last(self._v, weight).clone()
        return u, v, torch.dot(u, torch.mv(_matrix(weight), v))


class _DivideBySigma(torch.autograd.Function):
    """W / sigma, where sigma = u^T W v depends on W, and u and v are constants.

    The gradient is that of Miyato et al., section 3, in fewer operations than autograd's.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
        ctx.save_for_backward(weight, u, v, sigma)
        return weight / sigma

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weight, u, v, sigma = ctx.saved_tensors
        scaled = _matrix(gradient / sigma)
        through_sigma = torch.dot(scaled.flatten(), _matrix(weight).flatten()) / sigma
        total = torch.addr(scaled, u * through_sigma, v, alpha=-1)
        _, channels, height, width = weight.shape
        return total.view(-1, height, width, channels).permute(0, 3, 1, 2), None, None, None


def _matrix(weight: Tensor) -> Tensor:
    """(out, in, k, k) -> (out, k * k * in), a view of a channels_last weight."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _channels_last(v: Tensor, weight: Tensor) -> Tensor:
    """(in * k * k,) -> (k * k * in,), the order of `_matrix`."""
    return v.view(weight.shape[1:]).permute(1, 2, 0).flatten()
