"""LPIPS as a loss against the lpips package, its gradients and its precision."""

import warnings

import lpips
import pytest
import torch

from sed_sr.models.losses.lpips import LPIPSDistance
from sed_sr.models.precision import keep_in_autocast_type
from sed_sr.options.errors import UserError

NETS = pytest.mark.parametrize("net", ["alex", "vgg"])


@pytest.fixture(scope="module")
def packages():
    """The package's networks, with random backbones."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision about arguments of lpips
        return {net: lpips.LPIPS(net=net, pnet_rand=True, verbose=False) for net in ("alex", "vgg")}


@pytest.fixture(scope="module")
def distances(packages):
    """Ours, from torchvision's names of the same weights."""
    return {
        net: LPIPSDistance(net, {f"features.{k.partition('.')[2]}": v for k, v in package.net.state_dict().items()})
        for net, package in packages.items()
    }


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, 32, 40, generator=generator)
    return (hr + 0.1 * torch.randn(hr.shape, generator=generator)).clamp(0, 1), hr


@NETS
def test_equals_the_package_for_images_in_unit_range(net, packages, distances, images):
    expected = packages[net](*images, normalize=True).mean().item()
    assert expected > 1e-4
    assert distances[net].train()(*images).item() == pytest.approx(expected, rel=1e-4)  # without dropout
    assert distances[net](images[1], images[1]) == 0


def test_gradients_reach_sr_only_and_are_finite(distances, images):
    for sr, hr in (images, (torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32))):
        sr, hr = sr.clone().requires_grad_(), hr.clone().requires_grad_()
        distances["alex"](sr, hr).backward()
        assert sr.grad.any()
        assert sr.grad.isfinite().all()
        assert hr.grad is None
    assert not any(parameter.requires_grad for parameter in distances["alex"].parameters())


def test_is_close_under_autocast(images):
    """With the weights of convolutions cast once, as in a training step."""
    expected = LPIPSDistance("alex")(*images)
    low = LPIPSDistance("alex")
    keep_in_autocast_type(low, "bf16")
    assert all(weight.dtype == torch.float32 for weight in low.calibration)
    with torch.autocast("cpu", torch.bfloat16):
        loss = low(*images)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)


def test_random_weights_are_reproducible_and_leave_the_global_generator_unchanged():
    torch.manual_seed(1)
    first = LPIPSDistance("alex").state_dict()
    drawn = torch.rand(4)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(4), drawn)
    second = LPIPSDistance("alex").state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_weights_of_another_network_raise():
    with pytest.raises(UserError, match="not those of torchvision's AlexNet"):
        LPIPSDistance("alex", {"features.0.weight": torch.zeros(1)})
