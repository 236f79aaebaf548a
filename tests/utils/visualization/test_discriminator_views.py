"""The views of a discriminator are what it computes, and computing them does not change it."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.models.semantic_fusion import SemanticFusionBlock
from sed_sr.options.errors import UserError
from sed_sr.utils.visualization.discriminator_views import (
    attention_blocks,
    distinct_points,
    principal_colours,
    respond,
    shown_part,
)

CHANNELS = 64  # of the semantics
DISCRIMINATORS = {"patch": PatchDiscriminator, "unet": UNetDiscriminator}


def scene(height: int = 64, width: int = 96, grid: tuple[int, int] = (4, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, height, width, generator=draw), torch.randn(1, CHANNELS, *grid, generator=draw)


def discriminator(kind: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    return DISCRIMINATORS[kind](**{"semantic_channels": CHANNELS, "features": 8, **settings})


def sharpened(network: nn.Module) -> nn.Module:
    """The network with attention that is far from uniform, as after training."""
    for block in attention_blocks(network).values():
        for layer in (block.semantic_in, block.image_in, block.self_attention.to_v, block.self_attention.to_out,
                      block.cross_attention.to_q, block.cross_attention.to_k):  # fmt: skip
            nn.init.normal_(layer.weight, std=0.3)
    return network


@pytest.mark.parametrize(("height", "width"), [(32, 32), (47, 100), (1356, 2040), (40, 60_000), (5000, 5000)])
def test_shown_part_is_the_largest_part_that_a_discriminator_accepts(height, width):
    rows, columns = shown_part(height, width)
    sides = [part.stop - part.start for part in (rows, columns)]
    for part, side, whole in zip((rows, columns), sides, (height, width), strict=True):
        assert side % 16 == 0
        assert side >= 32
        assert abs(part.start - (whole - part.stop)) <= 1
    assert sides[0] * sides[1] <= 2**20 + 32 * 60_000 * (height == 40)
    if height * width <= 2**20:
        assert all(whole - side < 16 for side, whole in zip(sides, (height, width), strict=True))
    elif height > 40:
        assert sides[0] * sides[1] > 0.95 * 2**20
        assert sides[0] / sides[1] == pytest.approx(height / width, rel=0.05)


def test_image_that_is_too_small_is_refused():
    with pytest.raises(UserError, match=r"31x500 pixels.*32x32"):
        shown_part(500, 31)


@pytest.mark.parametrize("grid", [(4, 6), (5, 7)])
@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_attention_equals_pytorchs_with_the_identity_as_values(kind, grid):
    """If the values are the identity, attention returns its weights."""
    network, (image, semantic) = sharpened(discriminator(kind)), scene(grid=grid)
    inputs = {}
    for name, block in attention_blocks(network).items():
        block.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given}))
    _, attention = respond(network, image, semantic, [(0, 0), (95, 63), (40, 30)])
    rows, columns = grid
    tokens = [0, rows * columns - 1, 30 * rows // 64 * columns + 40 * columns // 96]
    assert list(attention) == ["fusion1", "fusion2", "fusion3"]
    for name, block in attention_blocks(network).items():
        features, asked = inputs[name][1], inputs[name][0]
        x = block.semantic_in(block.norm(asked)).flatten(2).transpose(1, 2)
        x = block.self_attention_norm(x)
        x = block.cross_attention_norm(block.self_attention(x, x))
        q = block.cross_attention.to_q(x)
        k = block.cross_attention.to_k(block.image_in(features).flatten(2).transpose(1, 2))
        everywhere = F.scaled_dot_product_attention(q, k, torch.eye(k.shape[1])[None])[0]
        assert attention[name].shape == (3, *features.shape[-2:])
        assert torch.allclose(attention[name].flatten(1), everywhere[tokens], atol=1e-6)
        differences = (everywhere[tokens][:, None] - everywhere).abs().amax(dim=-1)
        assert ((differences < 1e-6).sum(dim=1) == 1).all()  # the rows of other positions differ


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_attention_of_a_point_sums_to_one(kind):
    _, attention = respond(sharpened(discriminator(kind)), *scene(), [(3, 3), (90, 60)])
    for maps in attention.values():
        assert torch.allclose(maps.sum(dim=(1, 2)), torch.ones(2))


class OneBlock(nn.Module):
    """A discriminator of one fusion block; its queries are the kind of a position, its keys the brightness."""

    def __init__(self) -> None:
        super().__init__()
        width = 32
        block = SemanticFusionBlock(image_channels=3, upscale=4, semantic_channels=width, inner_channels=width)
        for part in (block.semantic_in, block.image_in, block.self_attention.to_out):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
        with torch.no_grad():
            block.semantic_in.weight[0, 0] = 1  # the kind, +1 or -1 behind the norm
            block.image_in.weight[0] = 1 / 3  # the brightness
            for layer in (block.self_attention.to_out, block.self_attention.to_v):
                layer.weight.copy_(torch.eye(width))
            # A position attends to positions of its own kind, so that self-attention preserves the kind.
            block.self_attention.to_q.weight.copy_(10 * torch.eye(width))
            block.self_attention.to_k.weight.copy_(10 * torch.eye(width))
            for layer in (block.cross_attention.to_q, block.cross_attention.to_k):
                nn.init.zeros_(layer.weight)
                layer.weight[0, 0] = 10
        self.fusion1 = block

    def forward(self, image: torch.Tensor, semantic: torch.Tensor) -> torch.Tensor:
        return self.fusion1(semantic, image)


def test_attention_follows_hand_set_weights():
    """Positions on the left attend to bright pixels, those on the right to dark pixels."""
    image = torch.full((1, 3, 16, 32), 0.5)
    image[..., 2:5, 20:23] = 1
    image[..., 10:12, 6:9] = 0
    semantic = torch.zeros(1, 32, 4, 8)
    semantic[:, 0, :, :4], semantic[:, 0, :, 4:] = 1, -1
    left, right = respond(OneBlock(), image, semantic, [(1, 15), (31, 0)])[1]["fusion1"]
    assert left[2:5, 20:23].sum() > 0.99
    assert right[10:12, 6:9].sum() > 0.99


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_views_do_not_change_the_discriminator(kind, training):
    """No power iteration takes place, the mode is restored, and no hook remains."""
    network = discriminator(kind).train(training)
    before = copy.deepcopy(network.state_dict())
    respond(network, *scene(), [(0, 0)])
    assert all(part.training is training for part in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in network.modules())


def test_real_is_the_sigmoid_of_the_logits():
    network, (image, semantic) = discriminator("patch").eval(), scene()
    with torch.no_grad():
        logits = network(image, semantic)
    assert torch.allclose(respond(network, image, semantic)[0], 1 / (1 + torch.exp(-logits[0, 0])))


@pytest.mark.parametrize("settings", [{"semantic_channels": None}, {"fusion": "concatenation"}])
def test_without_cross_attention_there_is_no_attention(settings):
    network, (image, semantic) = discriminator("unet", **settings), scene()
    real, attention = respond(network, image, semantic if "fusion" in settings else None, [(0, 0)])
    assert attention == {}
    assert real.shape == (64, 96)


def test_colours_are_the_principal_components():
    """Compared with the singular value decomposition, up to scale and sign."""
    _, semantic = scene(grid=(9, 11))
    semantic = semantic * torch.linspace(0.1, 2, CHANNELS)[:, None, None] + 5
    colours = principal_colours(semantic).flatten(1).numpy()
    features = semantic[0].flatten(1).T.numpy().astype(float)
    left, values, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    for number in range(3):
        component = left[:, number] * values[number]
        inside = (colours[number] > 0) & (colours[number] < 1)
        assert inside.mean() > 0.9
        assert abs(np.corrcoef(component[inside], colours[number][inside])[0, 1]) == pytest.approx(1, abs=1e-6)
        assert colours[number].min() == 0
        assert colours[number].max() == 1


def test_colours_do_not_depend_on_the_order_of_channels():
    """Eigenvectors have either sign, but the colours are unique."""
    _, semantic = scene(grid=(9, 11))
    for seed in range(4):
        order = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(principal_colours(semantic[:, order]), principal_colours(semantic), atol=1e-5)


def test_constant_features_have_a_constant_colour():
    assert torch.equal(principal_colours(torch.ones(1, CHANNELS, 3, 4)), torch.full((3, 3, 4), 0.5))
    two_kinds = torch.zeros(1, CHANNELS, 4, 4)
    two_kinds[:, :, :, 2:] = 1
    first, *others = principal_colours(two_kinds)
    assert sorted(set(first.flatten().tolist())) == [0, 1]
    assert all((other == 0.5).all() for other in others)


def test_distinct_points_have_different_semantics():
    semantic = torch.zeros(1, CHANNELS, 6, 8)
    for kind, (rows, columns) in enumerate([(slice(1, 3), slice(1, 4)), (slice(3, 5), slice(4, 6))]):
        semantic[0, kind, rows, columns] = 10
    semantic[0, 5, 0] = 1000  # the border, which is left out
    points = distinct_points(semantic, (96, 128), 5)
    kinds = [semantic[0, :, y // 16, x // 16].tolist() for x, y in points]
    assert len(points) == 3  # a fourth one would equal one of them
    assert all(kinds.count(kind) == 1 for kind in kinds)
    assert all(y >= 16 for _, y in points)


def test_distinct_points_are_found_in_the_smallest_image():
    _, semantic = scene(grid=(2, 1))
    points = distinct_points(semantic, (32, 16), 4)
    assert sorted(points) == [(8, 8), (8, 24)]
