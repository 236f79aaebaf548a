import copy

import pytest
import torch
from torch.nn.utils.parametrize import is_parametrized

from models.discriminators import PatchDiscriminator, UNetDiscriminator
from utils.errors import UserError

BOTH = pytest.mark.parametrize("cls", [PatchDiscriminator, UNetDiscriminator])
ORIGINAL = ".parametrizations.weight.original"


def tiny(cls, semantic_channels=64, seed=0):
    torch.manual_seed(seed)
    return cls(semantic_channels=semantic_channels, features=4)


def inputs(height=32, width=48, batch=2):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, 3, height, width, generator=generator)
    return image, torch.randn(batch, 64, height // 16, width // 16, generator=generator)


@torch.no_grad()
def speak_up(discriminator):
    """Fusion blocks that say something, as after training."""
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
def test_spectral_norm_is_one_where_it_should_be_from_the_first_step(cls, normalised):
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


@BOTH
@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 80), (48, 32)])
@torch.no_grad()
def test_any_multiple_of_16_works(cls, height, width):
    image, semantic = inputs(height, width)
    out = tiny(cls)(image, semantic)
    expected = (height // 8 - 2, width // 8 - 2) if cls is PatchDiscriminator else (height, width)
    assert out.shape == (2, 1, *expected)


@BOTH
@torch.no_grad()
def test_plain_is_the_semantic_one_whose_merge_passes_the_image_features_on(cls):
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


def test_patch_starts_from_n_0_002_and_no_biases_everywhere():
    torch.manual_seed(0)
    for name, parameter in PatchDiscriminator(semantic_channels=256, features=16).named_parameters():
        if "norm" in name:
            continue
        if name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002, name


def test_unet_starts_with_silent_fusion_blocks():
    discriminator = tiny(UNetDiscriminator)
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
        # Cut between image features and block: its values stay, only the gradient's way through them goes.
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
def test_can_be_copied_and_restored_in_the_middle_of_training(cls):
    discriminator = speak_up(tiny(cls))
    image, semantic = inputs()
    discriminator(image, semantic).mean().backward()
    clone, restored = copy.deepcopy(discriminator), tiny(cls, seed=1)
    restored.load_state_dict(discriminator.state_dict(), strict=True)
    expected = discriminator(image, semantic)
    assert torch.equal(clone(image, semantic), expected)
    assert torch.equal(restored(image, semantic), expected)


@BOTH
def test_sizes_that_do_not_fit_are_refused_with_a_sentence(cls):
    image, semantic = inputs()
    with pytest.raises(UserError, match=r"images of 40x48 pixels.*multiples of 16"):
        tiny(cls, None)(torch.rand(1, 3, 40, 48))
    with pytest.raises(UserError, match=r"images of 16x48 pixels.*at least 32"):
        tiny(PatchDiscriminator, None)(torch.rand(1, 3, 16, 48))
    with pytest.raises(UserError, match=r"shape \(2, 64, 3, 3\).*needs \(2, 64, 2, 3\)"):
        tiny(cls)(image, torch.randn(2, 64, 3, 3))
    with pytest.raises(UserError, match=r"shape \(1, 64, 2, 3\).*needs \(2, 64, 2, 3\)"):
        tiny(cls)(image, semantic[:1])
