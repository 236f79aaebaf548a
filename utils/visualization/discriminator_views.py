"""What a discriminator sees: where its fusion blocks attend, what it takes for real, and the semantics it is given.

Source: SeD (CVPR 2024, arXiv 2402.19387), section 3: semantics ask (query), image features answer (key and value).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sed_sr.models.semantic_fusion import Attention, SemanticFusionBlock

Point = tuple[int, int]  # pixels of the image: from the left, from the top


@dataclass(frozen=True)
class Look:
    """What a discriminator made of one image, at rest."""

    real: Tensor  # (h, w): sigmoid of its logits, on whatever grid it gives them
    attention: dict[str, Tensor]  # of each fusion block that attends, for each point (points, H', W'), which sums to 1


@torch.no_grad()
def look(discriminator: nn.Module, image: Tensor, semantic: Tensor | None, points: Sequence[Point] = ()) -> Look:
    """Show one image to a discriminator, which stays as it is: its power iterations rest, its mode is given back.

    Of the attention only the rows of the semantic positions that cover `points` are computed, never the whole matrix.

    Args:
        image: (1, 3, H, W) float in [0, 1], of sides that the discriminator takes.
        semantic: (1, C, h, w), None for a plain discriminator.
        points: within the image.
    """
    was_training = discriminator.training
    discriminator.eval()
    try:
        with _attention_of(attending_blocks(discriminator), points, image.shape[-2:]) as attention:
            logits = discriminator(image, semantic)
    finally:
        discriminator.train(was_training)
    return Look(logits[0, 0].float().sigmoid(), dict(sorted(attention.items())))


def attending_blocks(discriminator: nn.Module) -> dict[str, SemanticFusionBlock]:
    """The fusion blocks with cross-attention, by name; a discriminator may have none."""
    return {name: part for name, part in discriminator.named_children() if isinstance(part, SemanticFusionBlock)}


@contextmanager
def _attention_of(
    blocks: dict[str, SemanticFusionBlock], points: Sequence[Point], size: tuple[int, int]
) -> Iterator[dict[str, Tensor]]:
    """Fills what it yields during a forward pass: of each block its attention, as in `Look`."""
    found, grids, hooks = {}, {}, []

    def on_block(block: SemanticFusionBlock, inputs: tuple[Tensor, Tensor]) -> None:
        grids[block] = [features.shape[-2:] for features in inputs]

    def on_attention(name: str, block: SemanticFusionBlock, inputs: tuple[Tensor, Tensor]) -> None:
        semantic_grid, image_grid = grids[block]
        tokens = [_token_at(point, size, semantic_grid) for point in points]
        query, context = (features[0] for features in inputs)  # tokens (hw, dim) and (H'W', dim) of the one image
        found[name] = attention_rows(block.cross_attention, query[tokens], context).unflatten(1, image_grid)

    for name, block in blocks.items():
        hooks += [
            block.register_forward_pre_hook(on_block),
            block.cross_attention.register_forward_pre_hook(
                lambda _, inputs, name=name, block=block: on_attention(name, block, inputs)
            ),
        ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def attention_rows(attention: Attention, query: Tensor, context: Tensor) -> Tensor:
    """How much each of the M tokens of `context` counts for each of the N of `query`.

    softmax(q k^T / sqrt(dim)) (Vaswani et al., NeurIPS 2017, eq. 1): (N, dim), (M, dim) -> (N, M), rows sum to 1.
    """
    q, k = attention.to_q(query), attention.to_k(context)
    return (q @ k.T / q.shape[-1] ** 0.5).float().softmax(dim=-1)


def _token_at(point: Point, size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Number of the semantic position that covers a point of an image of this size (height, width)."""
    (x, y), (height, width), (rows, columns) = point, size, grid
    return y * rows // height * columns + x * columns // width


def telling_points(semantic: Tensor, size: tuple[int, int], count: int) -> list[Point]:
    """Points whose semantics differ most: each is the farthest, in feature space, from all before it.

    The first one is the farthest from the mean. The outermost positions, which see more of the padding than of the
    image, are left out where there are others.

    Args:
        semantic: (1, C, h, w).
        size: height and width of the image in pixels.

    Returns:
        `count` points at most, in the middle of their semantic positions.
    """
    (height, width), (rows, columns) = size, semantic.shape[-2:]
    candidates = [row * columns + column for row in _inner(rows) for column in _inner(columns)]
    features = semantic[0].flatten(1).T.float()[candidates]  # (candidates, C)
    distance, chosen = (features - features.mean(dim=0)).norm(dim=1), []
    while len(chosen) < count:
        farthest = int(distance.argmax())
        if chosen and distance[farthest] == 0:
            break  # all that are left are like one that was chosen
        to_it = (features - features[farthest]).norm(dim=1)
        distance = torch.minimum(distance, to_it) if chosen else to_it
        chosen.append(candidates[farthest])
    return [
        (int((token % columns + 0.5) * width / columns), int((token // columns + 0.5) * height / rows))
        for token in chosen
    ]


def _inner(positions: int) -> range:
    return range(1, positions - 1) if positions > 2 else range(positions)


def principal_colours(semantic: Tensor) -> Tensor:
    """Semantic features as colours: their first three principal components over the image as red, green and blue.

    Each component is stretched so that all but the outermost 2 % at either end lie in [0, 1]; one that does not vary
    is 0.5. Which end is bright means nothing, but is the same for the same features.

    (1, C, h, w) -> (3, h, w) float in [0, 1], on the CPU.
    """
    features = semantic[0].flatten(1).T.double().cpu()  # (hw, C)
    features = features - features.mean(dim=0)
    variances, directions = torch.linalg.eigh(features.T @ features)  # ascending
    kept = directions[:, -3:].flip(1) * (variances[-3:].flip(0) > 1e-9 * variances[-1])
    kept = kept * kept.gather(0, kept.abs().argmax(dim=0, keepdim=True)).sign()  # eigenvectors come with either sign
    components = features @ kept  # (hw, 3)
    low, high = components.quantile(torch.tensor([0.02, 0.98], dtype=torch.double), dim=0)
    stretched = torch.where(high > low, (components - low) / (high - low), 0.5)
    return stretched.clamp(0, 1).float().T.unflatten(1, semantic.shape[-2:])
