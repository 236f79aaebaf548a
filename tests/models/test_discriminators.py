"""Discriminators: reference outputs, published sizes, fusion, initialisation, errors."""

import copy

import pytest
import torch
from torch.nn.utils.parametrize import is_parametrized

from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.options.errors import UserError

BOTH = pytest.mark.parametrize("cls", [PatchDiscriminator, UNetDiscriminator])
FUSIONS = pytest.mark.parametrize("fusion", ["cross-attention", "concatenation"])
# Channels and stride of extractors: ViT, DINOv2, last ResNet layer, ConvNeXt or ResNet stages, MobileNet.
SEMANTICS = pytest.mark.parametrize(
    ("channels", "stride"), [(768, 16), (384, 14), (2048, 32), (512, 8), (256, 4), (96, 4), (80, 16)]
)
ORIGINAL = ".parametrizations.weight.original"


def tiny(cls, semantic_channels=64, seed=0, **semantics):
    torch.manual_seed(seed)
    return cls(semantic_channels=semantic_channels, features=4, **semantics)


def inputs(height=32, width=48, batch=2, channels=64, stride=16):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 3, height, width, generator=generator)
    grid = (max(1, round(side / stride)) for side in (height, width))
    return image, torch.randn(batch, channels, *grid, generator=generator)


@torch.no_grad()
def speak_up(discriminator):
    """Make the fusion blocks' output nonzero, as after training."""
    for fusion in (discriminator.fusion1, discriminator.fusion2, discriminator.fusion3):
        fusion.semantic_out.weight.normal_()
    return discriminator


@torch.no_grad()
def converge_power_iterations(discriminator):
    for module in discriminator.modules():
        if is_parametrized(module, "weight"):
            norm = module.parametrizations.weight[0]
            u, _, vh = torch.linalg.svd(module.parametrizations.weight.original.flatten(1), full_matrices=False)
            norm._u.copy_(u[:, 0])
            norm._v.copy_(vh[0])


@pytest.mark.parametrize(
    ("cls", "fixture"),
    [(PatchDiscriminator, "discriminator_patch_semantic"), (UNetDiscriminator, "discriminator_unet_semantic")],
)
@torch.no_grad()
def test_equals_the_reference_outputs(cls, fixture, fill, reference):
    expected = reference(fixture)
    discriminator = cls().eval()
    shapes = {}
    for name, parameter in discriminator.named_parameters():
        name = name.replace(ORIGINAL, ".weight")
        shapes[name] = str(tuple(parameter.shape))
        parameter.copy_(torch.from_numpy(fill.fill(name, parameter.shape)))
    assert shapes == dict(zip(expected["names"].tolist(), expected["shapes"].tolist(), strict=True))
    converge_power_iterations(discriminator)
    image = torch.from_numpy(fill.image("image", (1, 3, 128, 128)))
    semantic = torch.from_numpy(fill.features("semantic", (1, 1024, 8, 8)))
    output = torch.from_numpy(expected["output"])
    torch.testing.assert_close(discriminator(image, semantic), output, rtol=0, atol=1e-4 * output.std().item())


@pytest.mark.parametrize(
    ("cls", "normalised"),
    [
        (PatchDiscriminator, {"conv1", "conv2", "conv3", "merge1", "merge2", "merge3"}),
        (UNetDiscriminator, {f"conv{i}" for i in range(1, 9)} | {"merge1", "merge2", "merge3"}),
    ],
)
def test_spectral_norm_is_one_for_the_normalised_layers_from_the_first_step(cls, normalised):
    torch.manual_seed(0)
    discriminator = cls(features=16)
    norms = {
        name: torch.linalg.matrix_norm(module.weight.flatten(1), ord=2).item()
        for name, module in discriminator.named_modules()
        if is_parametrized(module, "weight")
    }
    assert norms == {name: pytest.approx(1, abs=0.1) for name in normalised}


@pytest.mark.parametrize("semantic_channels", [None, 64])
@pytest.mark.parametrize(("cls", "expected"), [(PatchDiscriminator, (30, 30)), (UNetDiscriminator, (256, 256))])
@torch.no_grad()
def test_logits_have_the_published_size_for_256x256(cls, expected, semantic_channels):
    image, semantic = inputs(256, 256, batch=1)
    discriminator = tiny(cls, semantic_channels)
    assert discriminator(image, semantic if semantic_channels else None).shape == (1, 1, *expected)


def logits_shape(cls, height, width):
    return (2, 1, height // 8 - 2, width // 8 - 2) if cls is PatchDiscriminator else (2, 1, height, width)


@BOTH
@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 80), (48, 32)])
@torch.no_grad()
def test_any_multiple_of_16_works(cls, height, width):
    image, semantic = inputs(height, width)
    assert tiny(cls)(image, semantic).shape == logits_shape(cls, height, width)


@BOTH
@FUSIONS
@SEMANTICS
def test_any_semantic_features_are_accepted_and_affect_the_logits(cls, fusion, channels, stride, fill_parameters):
    discriminator = fill_parameters(tiny(cls, channels, semantic_stride=stride, fusion=fusion)).eval()
    converge_power_iterations(discriminator)
    image, semantic = inputs(64, 96, channels=channels, stride=stride)
    semantic.requires_grad_()
    logits = discriminator(image, semantic)
    assert logits.shape == logits_shape(cls, 64, 96)
    logits.square().mean().backward()
    assert all(p.grad.any() for p in discriminator.parameters())
    assert semantic.grad.any(dim=1).all()  # at each position
    other = discriminator(image, semantic.detach().flip(1))
    assert (other - logits).std() > 0.1 * logits.std()


@BOTH
@SEMANTICS
@torch.no_grad()
def test_concatenated_semantic_features_affect_the_logits(cls, channels, stride):
    discriminator = speak_up(tiny(cls, channels, semantic_stride=stride, fusion="concatenation")).eval()
    image, semantic = inputs(128, 128, batch=1, channels=channels, stride=stride)
    other = semantic.clone()
    side = semantic.shape[-1] // 4
    other[..., :side, :side] = semantic[..., :side, :side].flip(1)
    changes = (discriminator(image, other) - discriminator(image, semantic)).abs()
    quarter = changes.shape[-1] // 4
    here, opposite = changes[..., :quarter, :quarter].mean(), changes[..., -quarter:, -quarter:].mean()
    assert here > 10 * opposite


@BOTH
@SEMANTICS
@torch.no_grad()
def test_each_block_upscales_by_the_rounded_ratio_of_its_two_grids(cls, channels, stride):
    discriminator = tiny(cls, channels, semantic_stride=stride, fusion="concatenation")
    image, semantic = inputs(224, 224, batch=1, channels=channels, stride=stride)  # 14 and 32 divide them
    ratios = []
    for fusion in (discriminator.fusion1, discriminator.fusion2, discriminator.fusion3):
        fusion.register_forward_pre_hook(lambda _, args: ratios.append(args[1].shape[-1] / args[0].shape[-1]))
        fusion.shuffle.register_forward_hook(lambda _, args, out: ratios.append(out.shape[-1] / args[0].shape[-1]))
    discriminator(image, semantic)
    assert len(ratios) == 6
    for wanted, upscale in zip(ratios[::2], ratios[1::2], strict=True):
        assert abs(upscale - max(1, wanted)) <= 0.5


def fusion_block_parameters(image_channels, upscale, refine_kernel=3, *, semantic_channels=1024, inner=64):
    """Number of parameters by the published table of layers."""
    out_channels = semantic_channels // upscale**2
    attention = 4 * inner**2 + inner
    return sum(
        (
            2 * semantic_channels + 3 * 2 * inner,  # norms
            (semantic_channels + 1) * inner + (image_channels + 1) * inner,  # semantic_in, image_in
            2 * attention,
            (inner + 1) * 512 + (256 + 1) * inner,  # feed_forward
            (inner + 1) * semantic_channels,  # semantic_out
            (refine_kernel**2 * out_channels + 1) * out_channels,  # refine
            (9 * (image_channels + out_channels) + 1) * image_channels,  # merge
        )
    )


@pytest.mark.parametrize(
    ("cls", "blocks"),
    [(PatchDiscriminator, [(128, 4), (256, 2), (512, 2, 4)]), (UNetDiscriminator, [(128, 8), (256, 4), (512, 2)])],
)
def test_blocks_add_as_many_parameters_as_published(cls, blocks):
    semantic, plain = (sum(p.numel() for p in d.parameters()) for d in (cls(), cls(semantic_channels=None)))
    assert semantic - plain == sum(fusion_block_parameters(*block) for block in blocks)


@BOTH
@torch.no_grad()
def test_plain_discriminator_equals_the_semantic_one_with_identity_merge(cls):
    plain, semantic = tiny(cls, None, seed=1).eval(), speak_up(tiny(cls)).eval()
    missing, unexpected = semantic.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0].rstrip("123") for name in missing} == {"fusion", "merge"}
    for merge in (semantic.merge1, semantic.merge2, semantic.merge3):
        kernel = torch.zeros_like(merge.weight)
        kernel[:, : len(kernel), 1, 1] = torch.eye(len(kernel))  # all its singular values are 1
        merge.parametrizations.weight.original.copy_(kernel)
        merge.bias.zero_()
    for discriminator in (plain, semantic):
        converge_power_iterations(discriminator)
    image, features = inputs()
    torch.testing.assert_close(semantic(image, features), plain(image), rtol=1e-4, atol=1e-5)


@FUSIONS
def test_patch_starts_from_n_0_002_and_zero_biases(fusion):
    torch.manual_seed(0)
    for name, parameter in PatchDiscriminator(semantic_channels=256, fusion=fusion, features=16).named_parameters():
        if "norm" in name:
            continue
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002, name


@FUSIONS
def test_unet_starts_with_zero_output_of_fusion_blocks(fusion):
    discriminator = tiny(UNetDiscriminator, fusion=fusion)
    image, semantic = inputs()
    discriminator.eval()
    torch.testing.assert_close(discriminator(image, semantic), discriminator(image, -semantic), rtol=0, atol=0)
    assert discriminator.conv0.weight.abs().max() > 0.1  # PyTorch's own initialisation: uniform to 1 / sqrt(27)


@BOTH
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_reach_the_image_through_each_fusion_block(cls, stage, fill_parameters):
    def image_gradient(discriminator, *, cut):
        image, semantic = inputs()
        image.requires_grad_()
        fusion = discriminator.get_submodule(f"fusion{stage}")
        # Detach the image features before the block: same values, no gradient through them.
        hook = fusion.register_forward_pre_hook(lambda _, args: (args[0], args[1].detach()) if cut else None)
        discriminator(image, semantic).square().mean().backward()
        hook.remove()
        return image.grad

    discriminator = fill_parameters(tiny(cls)).eval()
    converge_power_iterations(discriminator)
    whole, without = image_gradient(discriminator, cut=False), image_gradient(discriminator, cut=True)
    assert whole.any()
    assert (whole - without).norm() > 1e-4 * whole.norm()


@BOTH
@FUSIONS
def test_shared_semantic_features_equal_repeated_ones(cls, fusion, fill_parameters):
    discriminator = fill_parameters(tiny(cls, fusion=fusion)).eval()
    converge_power_iterations(discriminator)
    (real, semantic), fake = inputs(), torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    outputs, gradients = [], []
    for given in (semantic, torch.cat((semantic, semantic))):
        image = torch.cat((real, fake)).requires_grad_()
        discriminator.zero_grad()
        outputs.append(discriminator(image, given))
        (outputs[-1].square() * torch.tensor([1, -2, 3, -4]).view(-1, 1, 1, 1)).mean().backward()
        gradients.append([image.grad, *(parameter.grad for parameter in discriminator.parameters())])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5 * outputs[1].abs().max().item())
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


@BOTH
def test_frozen_in_the_g_step_and_trained_in_the_d_step(cls):
    discriminator = speak_up(tiny(cls))
    image, semantic = inputs()
    image.requires_grad_()
    discriminator.requires_grad_(False)
    discriminator(image, semantic).mean().backward()
    assert image.grad.any()
    assert all(p.grad is None for p in discriminator.parameters())
    discriminator.requires_grad_(True)
    discriminator(image.detach(), semantic).square().mean().backward()
    assert all(p.grad is not None for p in discriminator.parameters())


@BOTH
def test_power_iterations_advance_in_training_mode_only(cls):
    discriminator = tiny(cls)
    image, semantic = inputs()

    def vectors():
        return torch.cat([b for name, b in discriminator.named_buffers() if name.endswith("_u")]).clone()

    before = vectors()
    discriminator.eval()(image, semantic)
    assert torch.equal(vectors(), before)
    discriminator.train()(image, semantic)
    assert not torch.equal(vectors(), before)


@BOTH
def test_can_be_copied_and_restored_during_training(cls):
    discriminator = speak_up(tiny(cls))
    image, semantic = inputs()
    discriminator(image, semantic).mean().backward()
    clone, restored = copy.deepcopy(discriminator), tiny(cls, seed=1)
    restored.load_state_dict(discriminator.state_dict(), strict=True)
    expected = discriminator(image, semantic)
    assert torch.equal(clone(image, semantic), expected)
    assert torch.equal(restored(image, semantic), expected)


@BOTH
@pytest.mark.parametrize("semantic_channels", [None, 64])
def test_features_are_the_activations_of_all_layers_but_the_last(cls, semantic_channels):
    """By forward hooks of the convolutions, or of those that merge image features with those of the fusion blocks."""
    discriminator = tiny(cls, semantic_channels).eval()
    convolutions = {name: layer for name, layer in discriminator.named_children() if name.startswith("conv")}
    *names, last = convolutions
    merged = {"conv1": "merge1", "conv2": "merge2", "conv3": "merge3"}
    if cls is UNetDiscriminator:  # its other merges come before a convolution
        merged = {"conv3": "merge3"}
    outputs = []
    for name in names:
        layer = merged.get(name, name) if semantic_channels is not None else name
        discriminator.get_submodule(layer).register_forward_hook(lambda _, __, output: outputs.append(output))
    image, semantic = inputs()
    semantic = semantic if semantic_channels is not None else None
    logits, features = discriminator(image, semantic, return_features=True)
    assert len(features) == len(names)
    for feature, output in zip(features, outputs, strict=True):
        torch.testing.assert_close(feature, torch.where(output > 0, output, 0.2 * output))
    assert torch.equal(logits, discriminator(image, semantic))
    assert torch.equal(logits, convolutions[last](features[-1]))


@BOTH
def test_unsupported_image_sizes_raise(cls):
    with pytest.raises(UserError, match=r"images of 40x48 pixels.*multiples of 16"):
        tiny(cls, None)(torch.rand(1, 3, 40, 48))
    with pytest.raises(UserError, match=r"images of 16x48 pixels.*at least 32"):
        tiny(PatchDiscriminator, None)(torch.rand(1, 3, 16, 48))


@BOTH
def test_mismatched_semantic_features_raise(cls):
    image, semantic = inputs()
    for wrong in (torch.cat((semantic, semantic)), torch.cat((semantic, semantic[:1])), semantic[:, :32]):
        with pytest.raises(AssertionError, match="for 2 images and 64 channels"):
            tiny(cls)(image, wrong)
    with pytest.raises(AssertionError, match="semantic discriminators only"):
        tiny(cls, None)(image, semantic)
