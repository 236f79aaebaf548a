"""Diagnostics: values against definitions and references, and no side effects."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sed_sr.models.diagnostics import accuracy, colour_drift, gradient_shares, spectral_norms
from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.models.losses.gan import GAN_LOSSES, GANLoss
from sed_sr.models.rrdb import RRDBNet

BOTH = pytest.mark.parametrize("cls", [PatchDiscriminator, UNetDiscriminator])


def networks():
    torch.manual_seed(0)
    generator = RRDBNet(features=8, blocks=1, growth=4)
    return generator, PatchDiscriminator(semantic_channels=None, features=4).requires_grad_(False)


def objective(generator, discriminator, dtype=torch.float32):
    """The weighted terms on a fixed batch, as in the training step."""
    draw = torch.Generator().manual_seed(1)
    lr, hr = torch.rand(2, 3, 8, 8, generator=draw), torch.rand(2, 3, 32, 32, generator=draw)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        sr = generator(lr).float()
        return {"pixel": F.l1_loss(sr, hr), "gan": 0.1 * GANLoss("vanilla").generator(discriminator(sr))}


def gradient(loss, network):
    """The gradient norm over all parameters, by a backward pass."""
    network.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shares_equal_those_of_separate_backward_passes(dtype):
    norms = {}
    for name in ("pixel", "gan"):
        generator, discriminator = networks()
        norms[name] = gradient(objective(generator, discriminator, dtype)[name], generator).norm().item()
    generator, discriminator = networks()
    shares = gradient_shares(objective(generator, discriminator, dtype), generator.parameters())
    assert {name: share.item() for name, share in shares.items()} == {
        name: pytest.approx(norm / sum(norms.values()), rel=1e-5) for name, norm in norms.items()
    }
    assert not any(share.requires_grad for share in shares.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_shares_changes_nothing(dtype):
    results = []
    for watched in (False, True):
        generator, discriminator = networks()
        terms = objective(generator, discriminator, dtype)
        if watched:
            gradient_shares(terms, generator.parameters())
            assert all(parameter.grad is None for parameter in generator.parameters())
        gradients = gradient(sum(terms.values()), generator)
        results.append([gradients, torch.get_rng_state(), *discriminator.state_dict().values()])
    assert all(torch.equal(plain, watched) for plain, watched in zip(*results, strict=True))


def test_shares_do_not_depend_on_the_loss_scale():
    generator, discriminator = networks()
    terms = objective(generator, discriminator)
    plain, scaled = (
        gradient_shares({name: scale * term for name, term in terms.items()}, generator.parameters())
        for scale in (1.0, 2.0**16)
    )
    torch.testing.assert_close(plain, scaled)


def test_frozen_and_unused_parameters_do_not_count():
    used, frozen, unreached = nn.Linear(4, 1), nn.Linear(4, 1).requires_grad_(False), nn.Linear(4, 1)
    x = torch.ones(1, 4)
    terms = {"one": used(x).sum() + frozen(x).sum(), "three": 3 * used(x).sum(), "elsewhere": unreached(x).sum()}
    shares = gradient_shares(terms, [*used.parameters(), *frozen.parameters()])
    assert {name: share.item() for name, share in shares.items()} == pytest.approx(
        {"one": 0.25, "three": 0.75, "elsewhere": 0.0}
    )


@pytest.mark.parametrize(("factor", "expected"), [(0.0, [0.0, 0.0]), (float("inf"), [np.nan, np.nan])])
def test_shares_of_zero_and_non_finite_gradients(factor, expected):
    weight = torch.ones(3, requires_grad=True)
    shares = gradient_shares({"pixel": factor * weight.sum(), "gan": weight.sum() * min(factor, 1.0)}, [weight])
    np.testing.assert_equal([share.item() for share in shares.values()], expected)


def matrices():
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    return {
        "wide": normal(40, 700),
        "tall": normal(700, 40),
        "square": normal(500, 500),  # its largest singular values are close together
        "nearly low-rank": normal(200, 3) @ normal(3, 300) + 1e-3 * normal(200, 300),
        "all singular values equal": 5 * torch.linalg.qr(normal(300, 300))[0],
        "tiny": 1e-12 * normal(30, 60),
        "huge": 1e12 * normal(30, 60),
        "zero": torch.zeros(30, 60),
        "one row": normal(1, 600),
    }


@pytest.mark.parametrize("name", matrices())
def test_spectral_norms_are_accurate_to_one_percent(name):
    weight = matrices()[name]
    layer = nn.Linear(*weight.T.shape)
    layer.weight.data = weight
    expected = torch.linalg.matrix_norm(weight.double(), ord=2).item()
    assert spectral_norms(nn.Sequential(layer))["0"].item() == pytest.approx(expected, rel=0.01, abs=0)


@BOTH
def test_spectral_norms_are_those_of_the_effective_weights(cls, fill_parameters):
    discriminator = fill_parameters(cls(semantic_channels=64, features=8))
    norms = spectral_norms(discriminator)
    discriminator.eval()
    expected = {
        name: torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item()
        for name, layer in discriminator.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    assert norms.keys() == expected.keys() > {"conv0", "merge3", "fusion1.self_attention.to_q"}
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(expected, rel=0.01)


@BOTH
def test_measuring_spectral_norms_changes_nothing(cls):
    torch.manual_seed(0)
    discriminator = cls(semantic_channels=64, features=4)
    discriminator.conv1.eval()
    discriminator(torch.rand(1, 3, 32, 32), torch.rand(1, 64, 2, 2)).mean().backward()
    before, rng = copy.deepcopy(discriminator), torch.get_rng_state()
    gradients = [parameter.grad.clone() for parameter in discriminator.parameters()]
    spectral_norms(discriminator)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in discriminator.modules()] == [module.training for module in before.modules()]
    after = discriminator.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.state_dict().items())
    for parameter, expected in zip(discriminator.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, expected)


def test_colour_drift_is_the_mean_difference_times_255():
    rng = np.random.default_rng(0)
    sr, hr = (rng.integers(0, 256, (2, 3, 20, 30)) for _ in range(2))
    drift = colour_drift(*(torch.from_numpy(levels).float() / 255 for levels in (sr, hr)))
    expected = [(sr[:, channel] - hr[:, channel]).mean() for channel in range(3)]
    assert list(drift) == ["drift_red", "drift_green", "drift_blue"]
    assert [value.item() for value in drift.values()] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_accuracy_is_the_share_of_logits_on_the_right_side_of_the_boundary(kind):
    real, fake = (3 * np.random.default_rng(0).standard_normal((2, 4, 1, 5, 5))).round(1)
    loss = GANLoss(kind)
    above, below = (fake.mean(), real.mean()) if kind == "relativistic" else (loss.boundary, loss.boundary)
    expected = {
        "d_real_accuracy": np.mean([1.0 if logit > above else 0.5 if logit == above else 0.0 for logit in real.flat]),
        "d_fake_accuracy": np.mean([1.0 if logit < below else 0.5 if logit == below else 0.0 for logit in fake.flat]),
    }
    measured = accuracy(torch.from_numpy(real), torch.from_numpy(fake), loss.boundary)
    assert {name: value.item() for name, value in measured.items()} == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_undecided_discriminator_has_accuracy_one_half(kind, dtype):
    boundary = GANLoss(kind).boundary
    logits = torch.full((3, 1, 31, 31), 0.1 if boundary is None else boundary, dtype=dtype)
    assert [value.item() for value in accuracy(logits, logits, boundary).values()] == [0.5, 0.5]
