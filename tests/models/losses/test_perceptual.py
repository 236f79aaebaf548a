"""The perceptual loss: a reference, layers, gradients and errors."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from sed_sr.models.losses.perceptual import VGG19_LAYERS, PerceptualLoss
from sed_sr.options.errors import UserError
from tests.models.test_semantic_extractor import perturbed

LITE0 = "tf_efficientnet_lite0"


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
    first = loss.backbone.features[0]
    sr, hr = images
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    sr_features, hr_features = (first(((x.movedim(1, -1) - mean) / std).movedim(-1, 1)) for x in (sr, hr))
    assert (sr_features < 0).any()
    assert loss(sr, hr).item() == pytest.approx((sr_features - hr_features).abs().mean().item(), rel=1e-5)


@pytest.mark.parametrize(("model", "layer"), [("vgg19", "conv2_2"), (f"timm/{LITE0}", "blocks.2")])
def test_gradients_reach_sr_only(images, model, layer):
    sr, hr = (x.clone().requires_grad_() for x in images)
    loss = PerceptualLoss(model=model, layer_weights={layer: 1.0})
    loss(sr, hr).backward()
    assert sr.grad.any()
    assert hr.grad is None
    assert all(p.grad is None for p in loss.parameters())


def test_layers_after_the_last_used_one_are_dropped():
    assert len(PerceptualLoss(layer_weights={"conv3_4": 1.0, "conv1_2": 1.0}).backbone.features) == 17


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
    with pytest.raises(UserError, match="no layer"):
        PerceptualLoss(layer_weights={})
    with pytest.raises(UserError, match=r"`features\.0\.weight` of shape \(64, 3, 3, 3\).*lack it"):
        PerceptualLoss(state={})


@pytest.mark.parametrize(
    ("model", "layers"),
    [(LITE0, {"blocks.4": 2.0, "blocks.1": 0.5}), ("resnet18.tv_in1k", {"layer1": 1.0, "layer3": 3.0})],
)
@pytest.mark.parametrize("side", [64, 70])
def test_loss_of_a_timm_model_equals_that_of_its_feature_extractor(model, layers, side):
    network = perturbed(timm.create_model(model, features_only=True)).eval()
    whole = timm.create_model(model)
    whole.load_state_dict(network.state_dict(), strict=False)
    stride = max(info["reduction"] for info in whole.feature_info if info["module"] in layers)
    sr, hr = torch.rand(2, 2, 3, side, side, generator=torch.Generator().manual_seed(1))

    def features(image):
        nearest = round(side / stride) * stride
        image = F.interpolate(image, (nearest, nearest), mode="bicubic", antialias=True)
        statistics = (torch.tensor(whole.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        mean, std = statistics
        with torch.no_grad():
            maps = network((image - mean) / std)
        return dict(zip([info["module"] for info in network.feature_info.get_dicts()], maps, strict=True))

    of_sr, of_hr = features(sr), features(hr)
    expected = sum(weight * (of_sr[name] - of_hr[name]).abs().mean() for name, weight in layers.items())
    loss = PerceptualLoss(model=f"timm/{model}", layer_weights=layers, state=whole.state_dict()).train()
    torch.testing.assert_close(loss(sr, hr), expected, rtol=1e-4, atol=1e-6)


def test_layers_of_a_timm_model_are_listed_for_a_wrong_one_and_for_those_of_vgg19():
    with pytest.raises(UserError, match=r"no layer 'blocks\.9'.*blocks\.0 \(2\), blocks\.1 \(4\)"):
        PerceptualLoss(model=f"timm/{LITE0}", layer_weights={"blocks.9": 1.0})
    with pytest.raises(UserError, match=r"no layer 'conv1_2'.*blocks\.0 \(2\)"):
        PerceptualLoss(model=f"timm/{LITE0}")
    with pytest.raises(UserError, match="'vgg16' was given"):
        PerceptualLoss(model="vgg16")
