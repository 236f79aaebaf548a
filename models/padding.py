"""Padding of images to the sides that a network needs."""

import torch
from torch import Tensor


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) -> the same image, reflected at the bottom and the right until `multiple` divides both sides."""
    # Without negative numbers, whose division an exported ONNX program rounds differently.
    height, width = ((side + multiple - 1) // multiple * multiple for side in image.shape[-2:])
    return reflect_pad(image, height, width)


def reflect_pad(image: Tensor, height: int, width: int) -> Tensor:
    """(B, C, h, w) -> (B, C, height, width), reflected about the last row and column (which are not repeated).

    F.pad does not accept a padding larger than the image. This reflects repeatedly; a single pixel is repeated.
    """
    for dim, size in ((-2, height), (-1, width)):
        last = torch.arange(image.shape[dim], device=image.device)[-1]
        position = torch.arange(size, device=image.device) % (2 * last).clamp(min=1)
        image = image.index_select(dim, torch.minimum(position, 2 * last - position))
    return image
