import pytest
import torch

from models.semantic_fusion import SemanticFusionBlock
from utils.errors import UserError


@pytest.fixture(scope="module")
def block(fill_parameters):
    return fill_parameters(SemanticFusionBlock(semantic_channels=64, image_channels=8, upscale=2))


def inputs(*, grid=(3, 5), image_grid=(6, 10)):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 64, *grid, generator=generator), torch.randn(2, 8, *image_grid, generator=generator)


@pytest.mark.parametrize(
    ("upscale", "refine_kernel", "expected"), [(2, 3, (16, 6, 10)), (2, 4, (16, 5, 9)), (8, 3, (1, 24, 40))]
)
def test_output_is_the_semantic_grid_upscaled(upscale, refine_kernel, expected):
    block = SemanticFusionBlock(semantic_channels=64, image_channels=8, upscale=upscale, refine_kernel=refine_kernel)
    out = block(*inputs())
    assert out.shape == (2, *expected)
    assert out.shape[1] == block.out_channels


def test_says_nothing_before_it_is_trained():
    torch.manual_seed(0)
    block = SemanticFusionBlock(semantic_channels=64, image_channels=8, upscale=2)
    bias = block.refine.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(block(*inputs()), bias.expand(2, -1, 6, 10), rtol=0, atol=0)


@torch.no_grad()
def test_image_features_answer_as_an_unordered_set(block):
    # Keys and values of attention have no order; only the query, the semantics, says what comes out where.
    semantic, image = inputs()
    shuffled = image.flatten(2)[:, :, torch.randperm(60, generator=torch.Generator().manual_seed(1))].view_as(image)
    out = block(semantic, image)
    torch.testing.assert_close(block(semantic, shuffled), out, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(block(semantic.flip(-1), image), out, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_scale_of_the_semantics_does_not_matter(block):
    # They are group-normalised on the way in, and no residual connection passes them by.
    semantic, image = inputs()
    torch.testing.assert_close(block(100 * semantic, image), block(semantic, image), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_images_of_a_batch_do_not_mix(block):
    semantic, image = inputs()
    torch.testing.assert_close(block(semantic[1:], image[1:]), block(semantic, image)[1:], rtol=1e-4, atol=1e-4)


def test_gradients_reach_semantics_image_and_every_parameter(block):
    semantic, image = (x.requires_grad_() for x in inputs())
    block.zero_grad()
    block(semantic, image).square().mean().backward()
    assert semantic.grad.any()
    assert image.grad.any()
    assert all(p.grad.any() for p in block.parameters())


def test_layout_of_the_semantics_in_memory_does_not_matter(block):
    """The extractor gives them channels last, and they want no gradient."""
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        semantic, image = (x.contiguous(memory_format=layout) for x in inputs())
        block.zero_grad()
        block(semantic, image).square().mean().backward()
        gradients.append([p.grad.clone() for p in block.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("channels", "upscale", "divisor"), [(1000, 2, 32), (96, 8, 64)])
def test_channels_that_cannot_be_shuffled_are_refused_with_a_sentence(channels, upscale, divisor):
    with pytest.raises(UserError, match=rf"{channels} channels.*divisible by {divisor}$"):
        SemanticFusionBlock(semantic_channels=channels, image_channels=8, upscale=upscale)
