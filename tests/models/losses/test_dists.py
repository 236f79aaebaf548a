"""DISTS as a loss against pyiqa's, its gradients and its precision."""

from types import SimpleNamespace

import pytest
import torch
import torchvision
from pyiqa.archs.dists_arch import DISTS

from sed_sr.models.losses.dists import DISTSLoss
from sed_sr.models.precision import keep_in_autocast_type
from sed_sr.options.errors import UserError


@pytest.fixture(scope="module")
def pyiqas():
    """pyiqa's network with random weights."""
    with pytest.MonkeyPatch.context() as patch:
        vgg = torchvision.models.vgg
        torch.manual_seed(0)
        features = vgg.make_layers(vgg.cfgs["D"])
        patch.setattr(torchvision.models, "vgg16", lambda **_: SimpleNamespace(features=features))
        return DISTS(pretrained=False)


@pytest.fixture(scope="module")
def state(pyiqas):
    """The same weights under the names of torchvision's and DISTS's files."""
    stages = {name: value for name, value in pyiqas.state_dict().items() if name.startswith("stage")}
    named = {f"features.{name.partition('.')[2]}": value for name, value in stages.items() if "filter" not in name}
    return {**named, "alpha": pyiqas.alpha.data, "beta": pyiqas.beta.data, "classifier.0.weight": torch.zeros(1)}


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, 40, 48, generator=generator)
    return (hr + 0.2 * torch.randn(hr.shape, generator=generator)).clamp(0, 1), hr


def test_equals_pyiqa(pyiqas, state, images):
    expected = pyiqas(*images).mean().item()
    assert expected > 0.01
    loss = DISTSLoss(state)
    assert loss(*images).item() == pytest.approx(expected, rel=1e-4)
    assert loss(images[1], images[1]).item() == pytest.approx(0, abs=1e-6)


def test_gradients_equal_those_of_pyiqa_and_reach_sr_only(pyiqas, state, images):
    (expected,) = torch.autograd.grad(pyiqas(sr := images[0].clone().requires_grad_(), images[1]).mean(), sr)
    sr, hr = (image.clone().requires_grad_() for image in images)
    loss = DISTSLoss(state)
    loss(sr, hr).backward()
    torch.testing.assert_close(sr.grad, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    assert hr.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_uniform_images_give_finite_gradients(value):
    sr = torch.full((1, 3, 32, 32), value, requires_grad=True)
    DISTSLoss()(sr, torch.rand(1, 3, 32, 32)).backward()
    assert sr.grad.isfinite().all()


def test_is_close_under_autocast(state, images):
    expected, low = DISTSLoss(state)(*images), DISTSLoss(state)
    keep_in_autocast_type(low, "bf16")
    with torch.autocast("cpu", torch.bfloat16):
        loss = low(*images)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)


def test_missing_weights_raise(state):
    with pytest.raises(UserError, match=r"weights of DISTS.*`alpha`.*lack it"):
        DISTSLoss({name: value for name, value in state.items() if name != "alpha"})
