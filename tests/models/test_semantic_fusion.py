"""Fusion blocks: grids, norms, independence of samples, shared semantic features, gradients."""

from functools import partial

import cv2
import numpy as np
import pytest
import torch

from sed_sr.models.semantic_fusion import SemanticConcatenation, SemanticFusionBlock

Attentive = partial(SemanticFusionBlock, image_channels=8)
BOTH = pytest.mark.parametrize("kind", [Attentive, SemanticConcatenation], ids=["attention", "concatenation"])


@pytest.fixture(scope="module")
def attentive(fill_parameters):
    return fill_parameters(Attentive(semantic_channels=64, upscale=2))


@pytest.fixture(scope="module")
def concatenation(fill_parameters):
    return fill_parameters(SemanticConcatenation(semantic_channels=64, upscale=2))


@pytest.fixture(params=["attentive", "concatenation"])
def block(request):
    return request.getfixturevalue(request.param)


def inputs(*, grid=(3, 5), image_grid=(6, 10)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 64, *grid, generator=generator), torch.randn(2, 8, *image_grid, generator=generator)


@BOTH
@pytest.mark.parametrize(("upscale", "channels"), [(1, 64), (2, 16), (3, 8), (16, 1)])
@pytest.mark.parametrize("refine_kernel", [3, 4])
@pytest.mark.parametrize("image_grid", [(6, 10), (5, 9), (1, 40)])
def test_output_has_the_grid_of_the_image_features(kind, upscale, channels, refine_kernel, image_grid):
    block = kind(semantic_channels=64, upscale=upscale, refine_kernel=refine_kernel)
    assert block(*inputs(image_grid=image_grid)).shape == (2, channels, *image_grid)
    assert block.out_channels == channels


@BOTH
@pytest.mark.parametrize(("channels", "groups"), [(1024, 32), (768, 32), (80, 16), (1000, 8), (7, 1)])
def test_norm_has_the_greatest_common_divisor_of_32_and_channels_as_groups(kind, channels, groups):
    assert kind(semantic_channels=channels, upscale=2).norm.num_groups == groups


@BOTH
@pytest.mark.parametrize(("grid", "image_grid"), [((3, 5), (7, 8)), ((9, 9), (16, 16)), ((4, 4), (3, 4))])
@torch.no_grad()
def test_grid_with_a_fractional_ratio_is_resized_as_by_opencv(kind, grid, image_grid, fill_parameters):
    block = fill_parameters(kind(semantic_channels=64, upscale=2))
    block.refine.weight.zero_()
    block.refine.bias.zero_()
    block.refine.weight[:, :, 1, 1] = torch.eye(block.out_channels)  # identity
    shuffled = []
    block.shuffle.register_forward_hook(lambda _, args, out: shuffled.append(out))
    out = block(*inputs(grid=grid, image_grid=image_grid))
    expected = [cv2.resize(x.permute(1, 2, 0).numpy(), image_grid[::-1]) for x in shuffled[0]]
    torch.testing.assert_close(out.movedim(1, -1), torch.from_numpy(np.stack(expected)), rtol=1e-4, atol=1e-4)


@BOTH
def test_output_is_zero_before_training(kind):
    torch.manual_seed(0)
    block = kind(semantic_channels=64, upscale=2)
    bias = block.refine.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(block(*inputs()), bias.expand(2, -1, 6, 10), rtol=0, atol=0)


def test_concatenation_has_everything_except_attention():
    def shapes(block):
        return {name: tuple(parameter.shape) for name, parameter in block.named_parameters()}

    attentive, concatenation = shapes(Attentive(upscale=4)), shapes(SemanticConcatenation(upscale=4))
    lacking = ("image_in", "self_attention", "cross_attention")
    assert concatenation == {name: shape for name, shape in attentive.items() if not name.startswith(lacking)}


@torch.no_grad()
def test_concatenation_ignores_the_image_and_other_positions(concatenation):
    semantic, image = inputs()
    out = concatenation(semantic, image)
    assert torch.equal(concatenation(semantic, -image), out)
    # A permutation of positions keeps the statistics of the norm.
    swapped = semantic.clone()
    swapped[..., 0, 0], swapped[..., 0, 1] = semantic[..., 0, 1], semantic[..., 0, 0]
    changed = (concatenation(swapped, image) - out).abs().amax(dim=(0, 1)) > 1e-3
    expected = torch.zeros(6, 10, dtype=torch.bool)
    expected[:3, :5] = True  # two positions of 2x2, and one around them that the 3x3 convolution reaches
    assert torch.equal(changed, expected)


@torch.no_grad()
def test_order_of_image_features_does_not_matter(attentive):
    # Attention does not depend on the order of keys and values; queries determine the positions of the output.
    semantic, image = inputs()
    shuffled = image.flatten(2)[:, :, torch.randperm(60, generator=torch.Generator().manual_seed(1))].view_as(image)
    out = attentive(semantic, image)
    torch.testing.assert_close(attentive(semantic, shuffled), out, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(attentive(semantic.flip(-1), image), out, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_scale_of_semantic_features_does_not_matter(block):
    # They are group-normalised first, and no residual connection bypasses the norm.
    semantic, image = inputs()
    torch.testing.assert_close(block(100 * semantic, image), block(semantic, image), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_images_of_a_batch_are_independent(block):
    semantic, image = inputs()
    torch.testing.assert_close(block(semantic[1:], image[1:]), block(semantic, image)[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_shared_semantic_features_equal_repeated_ones(block, times, layout):
    draw = torch.Generator().manual_seed(1)
    image = torch.randn(2 * times, 8, 6, 10, generator=draw).contiguous(memory_format=layout)
    weights = torch.randn(2 * times, block.out_channels, 6, 10, generator=draw)  # of the images' outputs in the loss
    outputs, gradients = [], []
    for repeat in (False, True):
        semantic, features = inputs()[0].requires_grad_(), image.clone().requires_grad_()
        block.zero_grad()
        outputs.append(block(torch.cat([semantic] * times) if repeat else semantic, features))
        (outputs[-1] * weights).sum().backward()
        tensors = {"semantic": semantic, "image": features, **dict(block.named_parameters())}
        gradients.append({name: x.grad for name, x in tensors.items() if x.grad is not None})
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


@pytest.mark.parametrize("times", [1, 2])
def test_layers_of_semantic_features_run_once_for_all_images(block, times):
    """The batch size of each layer for two semantic feature maps and `times` as many images."""
    batches = {}
    for name, part in block.named_modules():
        part.register_forward_pre_hook(lambda _, given, name=name: batches.update({name: len(given[0])}))
    semantic, image = inputs()
    assert len(block(semantic, torch.cat([image] * times))) == 2 * times
    alone = {"norm", "semantic_in", "feed_forward", "refine"}
    if isinstance(block, SemanticFusionBlock):
        alone = {"norm", "semantic_in", "self_attention", "cross_attention.to_q"}
        assert batches["refine"] == 2 * times
    assert {name: batches[name] for name in alone} == dict.fromkeys(alone, 2)


def test_gradients_reach_both_inputs_and_every_parameter(attentive):
    semantic, image = (x.requires_grad_() for x in inputs())
    attentive.zero_grad()
    attentive(semantic, image).square().mean().backward()
    assert semantic.grad.any()
    assert image.grad.any()
    assert all(p.grad.any() for p in attentive.parameters())


def test_memory_format_of_semantic_features_does_not_matter(block):
    """The extractor's features are channels_last and need no gradient."""
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        semantic, image = (x.contiguous(memory_format=layout) for x in inputs())
        block.zero_grad()
        block(semantic, image).square().mean().backward()
        gradients.append([p.grad.clone() for p in block.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
