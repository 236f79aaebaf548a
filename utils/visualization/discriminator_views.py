"""What a discriminator sees in an image, as arrays: semantic features, attention maps, and what it takes for real.

Source: SeD (CVPR 2024, arXiv 2402.19387), section 3: queries from the semantics, keys and values from image features.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sed_sr.data.tensors import to_float, to_tensor
from sed_sr.models.semantic_fusion import Attention, SemanticFusionBlock
from sed_sr.options.errors import UserError

Point = tuple[int, int]  # x and y of a pixel

MULTIPLE_PX = 16  # discriminators accept sides that are multiples of this,
MIN_PX = 32  # and at least this long
MAX_PX = 2**20  # limit on the pixels of an image: a U-Net stores 64 features for each


@dataclass(frozen=True)
class Views:
    """What a discriminator sees in the largest part of an image that it accepts, and in SR images of it.

    Points are relative to the part.
    """

    part: tuple[slice, slice]  # rows and columns of the image
    semantics: Tensor | None  # (1, C, h, w); None: a plain discriminator
    points: list[Point]  # whose attention maps these are
    attention: dict[str, np.ndarray]  # by fusion block: (points, H', W'), each map sums to 1
    real_hr: np.ndarray  # (h, w): probability of being real
    real_sr: dict[str, np.ndarray]  # the same of each SR image


@torch.no_grad()
def discriminator_views(
    discriminator: nn.Module,
    extractor: nn.Module | None,
    *,
    hr: np.ndarray,
    sr: Mapping[str, np.ndarray],
    points: Sequence[Point] | None = None,
    max_points: int = 1,
) -> Views:
    """Run a discriminator on an HR image and on SR images of it. Its state does not change.

    Args:
        extractor: of its semantics; None for a plain discriminator.
        hr: (H, W, 3) uint8.
        sr: by label, of the same size.
        points: within `shown_part`, and relative to it; None: at most `max_points` of distinct semantics.

    Raises UserError for images of less than 32 pixels.
    """
    part = shown_part(*hr.shape[:2])
    device = next(discriminator.parameters()).device

    def to_batch(rgb: np.ndarray) -> Tensor:
        return to_float(to_tensor(rgb[part])[None].to(device))

    image = to_batch(hr)
    semantic = None if extractor is None else extractor(image)
    if points is None:
        points = [] if semantic is None else distinct_points(semantic, image.shape[2:], max_points)
    real_hr, attention = respond(discriminator, image, semantic, points)
    real_sr = {label: respond(discriminator, to_batch(each), semantic)[0] for label, each in sr.items()}
    return Views(
        part=part,
        semantics=semantic,
        points=list(points),
        attention={name: maps.cpu().numpy() for name, maps in attention.items()},
        real_hr=real_hr.cpu().numpy(),
        real_sr={label: real.cpu().numpy() for label, real in real_sr.items()},
    )


def shown_part(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the largest centered part of an image that a discriminator accepts.

    Its sides are multiples of 16. It has about 2^20 pixels at most, in about the shape of the image. (Larger images
    are cropped and not shrunk, because a discriminator is trained at one scale.)

    Raises UserError for images of less than 32 pixels.
    """
    if min(height, width) < MIN_PX:
        raise UserError(f"the image has {width}x{height} pixels; a discriminator needs at least {MIN_PX}x{MIN_PX}")
    factor = min(1, math.sqrt(MAX_PX / (height * width)))
    sides = [max(MIN_PX, int(side * factor) // MULTIPLE_PX * MULTIPLE_PX) for side in (height, width)]
    starts = [(whole - side) // 2 for whole, side in zip((height, width), sides, strict=True)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return rows, columns


@torch.no_grad()
def respond(
    discriminator: nn.Module, image: Tensor, semantic: Tensor | None, points: Sequence[Point] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a discriminator in evaluation mode on one image, and restore its mode.

    Only the rows of the attention matrix that belong to `points` are computed, never the whole matrix.

    Args:
        image: (1, 3, H, W) float in [0, 1], with sides that the discriminator accepts.
        semantic: (1, C, h, w), None for a plain discriminator.
        points: within the image.

    Returns:
        The sigmoid of the logits, (h, w), and by fusion block the attention maps, (points, H', W'), each of sum 1.
    """
    rows = [] if semantic is None else [_token_at(point, image.shape[-2:], semantic.shape[-2:]) for point in points]
    grids, maps, hooks = {}, {}, []

    def on_image_features(name: str, conv: nn.Module, inputs: tuple[Tensor], features: Tensor) -> None:
        grids[name] = features.shape[-2:]

    def on_attention(name: str, attention: Attention, inputs: tuple[Tensor, Tensor]) -> None:
        query, context = (tokens[0] for tokens in inputs)  # (hw, dim) and (H'W', dim)
        maps[name] = attention_rows(attention, query[rows], context).unflatten(1, grids[name])

    for name, block in attention_blocks(discriminator).items():
        hooks += [
            block.image_in.register_forward_hook(partial(on_image_features, name)),
            block.cross_attention.register_forward_pre_hook(partial(on_attention, name)),
        ]
    was_training = discriminator.training
    discriminator.eval()
    try:
        logits = discriminator(image, semantic)
    finally:
        discriminator.train(was_training)
        for hook in hooks:
            hook.remove()
    return logits[0, 0].float().sigmoid(), dict(sorted(maps.items()))


def attention_blocks(discriminator: nn.Module) -> dict[str, SemanticFusionBlock]:
    """The fusion blocks with cross-attention, by name."""
    return {name: part for name, part in discriminator.named_children() if isinstance(part, SemanticFusionBlock)}


def attention_rows(attention: Attention, query: Tensor, context: Tensor) -> Tensor:
    """The attention weights of the M tokens of `context` for each of the N tokens of `query`.

    softmax(q k^T / sqrt(dim)) (Vaswani et al., NeurIPS 2017, eq. 1): (N, dim), (M, dim) -> (N, M), rows sum to 1.
    """
    q, k = attention.to_q(query), attention.to_k(context)
    return (q @ k.T / q.shape[-1] ** 0.5).float().softmax(dim=-1)


def _token_at(point: Point, size: Sequence[int], grid: Sequence[int]) -> int:
    """Index of the semantic position that covers a point of an image of this size (height, width)."""
    (x, y), (height, width), (rows, columns) = point, size, grid
    return y * rows // height * columns + x * columns // width


def distinct_points(semantic: Tensor, size: Sequence[int], count: int) -> list[Point]:
    """Points whose semantics differ most, by farthest point sampling in feature space, from the mean on.

    Positions at the border, where padding prevails, are left out if there are others.

    Args:
        semantic: (1, C, h, w).
        size: height and width of the image in pixels.

    Returns:
        At most `count` points, at the centers of their semantic positions.
    """
    (height, width), (rows, columns) = size, semantic.shape[-2:]
    candidates = [row * columns + column for row in _without_border(rows) for column in _without_border(columns)]
    features = semantic[0].flatten(1).T.float()[candidates]  # (candidates, C)
    distance, chosen = (features - features.mean(dim=0)).norm(dim=1), []
    while len(chosen) < count:
        farthest = int(distance.argmax())
        if chosen and distance[farthest] == 0:
            break  # the semantics of all others are equal to those of a chosen one
        to_farthest = (features - features[farthest]).norm(dim=1)
        distance = torch.minimum(distance, to_farthest) if chosen else to_farthest
        chosen.append(candidates[farthest])
    return [
        (int((token % columns + 0.5) * width / columns), int((token // columns + 0.5) * height / rows))
        for token in chosen
    ]


def _without_border(positions: int) -> range:
    return range(1, positions - 1) if positions > 2 else range(positions)


def principal_colours(semantic: Tensor) -> Tensor:
    """The first three principal components of semantic features over the image, as red, green and blue.

    Each component is scaled so that all but the outermost 2 % at either end lie in [0, 1]; a constant one is 0.5.
    Their signs carry no meaning, but are the same for the same features.

    (1, C, h, w) -> (3, h, w) float in [0, 1], on the CPU.
    """
    features = semantic[0].flatten(1).T.double().cpu()  # (hw, C)
    features = features - features.mean(dim=0)
    variances, directions = torch.linalg.eigh(features.T @ features)  # ascending
    kept = directions[:, -3:].flip(1) * (variances[-3:].flip(0) > 1e-9 * variances[-1])
    kept = kept * kept.gather(0, kept.abs().argmax(dim=0, keepdim=True)).sign()  # eigenvectors have either sign
    components = features @ kept  # (hw, 3)
    low, high = components.quantile(torch.tensor([0.02, 0.98], dtype=torch.double), dim=0)
    scaled = torch.where(high > low, (components - low) / (high - low), 0.5)
    return scaled.clamp(0, 1).float().T.unflatten(1, semantic.shape[-2:])
