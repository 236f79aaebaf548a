"""Conversions between RGB images, (H, W, 3) uint8 arrays, and tensors, (..., 3, H, W) uint8 or float in [0, 1]."""

import numpy as np
import torch
from torch import Tensor


def to_tensor(rgb: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) uint8 tensor."""
    # Not ascontiguousarray, which returns a flipped view of a single pixel as it is, with strides that PyTorch refuses.
    return torch.from_numpy(rgb.transpose(2, 0, 1).copy())


def to_array(image: Tensor) -> np.ndarray:
    """(3, H, W) uint8 tensor on any device -> (H, W, 3) uint8 array."""
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


def to_float(images: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 or uint16 -> float32 in [0, 1], on the same device."""
    return images.float() / torch.iinfo(images.dtype).max


def to_uint8(images: Tensor) -> Tensor:
    """(..., 3, H, W) float -> uint8: clamped to [0, 1], scaled to 255 and rounded, on the same device."""
    return to_integers(images, torch.uint8)


def to_integers(images: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., 3, H, W) float -> uint8 or uint16: clamped to [0, 1], scaled and rounded, on the same device."""
    return (images.float().clamp(0, 1) * torch.iinfo(dtype).max).round().to(dtype)
