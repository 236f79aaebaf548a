"""The perceptual loss: a reference, layers, gradients and errors."""

import pytest
import torch
import torchvision
from torch import nn

from sed_sr.models.losses.perceptual import VGG19_LAYERS, PerceptualLoss
from sed_sr.options.errors import UserError


@pytest.fixture(scope="module")
def vgg19():
    with torch.device("meta"):
        return torchvision.models.vgg19(weights=None)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 32, 32, generator=generator), torch.rand(2, 3, 32, 32, generator=generator)


def test_perceptual_loss_equals_the_reference(vgg19, fill, reference):
    state = {
        f"features.{name}": torch.from_numpy(fill.fill(f"features.{name}", value.shape))
        for name, value in vgg19.features.state_dict().items()
    }
    sr, hr = (torch.from_numpy(fill.image(name, (2, 3, 64, 64))) for name in ("sr", "hr"))
    loss = PerceptualLoss(state=state)(sr, hr)
    assert loss.item() == pytest.approx(reference("perceptual_vgg19")["loss"].item(), rel=1e-5)


def test_layer_names_match_the_convolutions_between_poolings(vgg19):
    expected, block, j = {}, 1, 0
    for i, layer in enumerate(vgg19.features):
        if isinstance(layer, nn.Conv2d):
            j += 1
            expected[f"conv{block}_{j}"] = i
        elif isinstance(layer, nn.MaxPool2d):
            block, j = block + 1, 0
    assert expected == VGG19_LAYERS


def test_layers_are_weighted_and_summed(images):
    def loss(**layer_weights):
        return PerceptualLoss(layer_weights=layer_weights)(*images).item()

    alone = loss(conv1_2=1.0), loss(conv2_1=1.0)
    assert all(alone)
    assert loss(conv1_2=0.5, conv2_1=3.0) == pytest.approx(0.5 * alone[0] + 3.0 * alone[1], rel=1e-5)


def test_features_are_taken_before_the_relu(images):
    loss = PerceptualLoss(layer_weights={"conv1_1": 1.0})
    first = loss.features[0]
    sr, hr = images
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    sr_features, hr_features = (first(((x.movedim(1, -1) - mean) / std).movedim(-1, 1)) for x in (sr, hr))
    assert (sr_features < 0).any()
    assert loss(sr, hr).item() == pytest.approx((sr_features - hr_features).abs().mean().item(), rel=1e-5)


def test_gradients_reach_sr_only(images):
    sr, hr = (x.clone().requires_grad_() for x in images)
    loss = PerceptualLoss(layer_weights={"conv2_2": 1.0})
    loss(sr, hr).backward()
    assert sr.grad.any()
    assert hr.grad is None
    assert all(p.grad is None for p in loss.parameters())


def test_layers_after_the_last_used_one_are_dropped():
    assert len(PerceptualLoss(layer_weights={"conv3_4": 1.0, "conv1_2": 1.0}).features) == 17


def test_random_weights_are_reproducible_and_leave_the_global_generator_unchanged():
    torch.manual_seed(1)
    first = PerceptualLoss(layer_weights={"conv2_2": 1.0}).state_dict()
    drawn = torch.rand(4)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(4), drawn)
    second = PerceptualLoss(layer_weights={"conv2_2": 1.0}).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_wrong_layers_and_weights_raise():
    with pytest.raises(UserError, match=r"'conv3_5'.*conv3_4, conv4_1"):
        PerceptualLoss(layer_weights={"conv3_5": 1.0})
    with pytest.raises(UserError, match=r"no layer.*conv1_1, conv1_2"):
        PerceptualLoss(layer_weights={})
    with pytest.raises(UserError, match=r"`features\.0\.weight` of shape \(64, 3, 3, 3\).*lack it"):
        PerceptualLoss(state={})
