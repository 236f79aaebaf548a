"""The VGG-style discriminator: the published layers, names, size and initialisation."""

import pytest
import torch
from torch import nn

from sed_sr.models.vgg_discriminator import VGGDiscriminator
from sed_sr.options.errors import UserError

SIZES = pytest.mark.parametrize("image_px", [128, 256])


def published(image_px, features):
    """The layers of ESRGAN's discriminator in their order, with the names of BasicSR's."""
    n = features
    layers = {"conv0_0": nn.Conv2d(3, n, 3, 1, 1), "conv0_1": nn.Conv2d(n, n, 4, 2, 1, bias=False)}
    layers["bn0_1"] = nn.BatchNorm2d(n)
    stages = [(1, n, 2 * n), (2, 2 * n, 4 * n), (3, 4 * n, 8 * n), (4, 8 * n, 8 * n)]
    for number, before, after in stages + [(5, 8 * n, 8 * n)] * (image_px == 256):
        layers[f"conv{number}_0"] = nn.Conv2d(before, after, 3, 1, 1, bias=False)
        layers[f"bn{number}_0"] = nn.BatchNorm2d(after)
        layers[f"conv{number}_1"] = nn.Conv2d(after, after, 4, 2, 1, bias=False)
        layers[f"bn{number}_1"] = nn.BatchNorm2d(after)
    layers["linear1"], layers["linear2"] = nn.Linear(8 * n * 4 * 4, 100), nn.Linear(100, 1)
    return nn.ModuleDict(layers)


def logits_of(layers, image):
    x = image
    for name, layer in layers.items():
        x = layer(x.flatten(1) if name == "linear1" else x)
        if name == "conv0_0" or name.startswith("bn") or name == "linear1":
            x = nn.functional.leaky_relu(x, 0.2)
    return x


@SIZES
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_published_layers_in_weights_names_logits_and_gradients(image_px, training):
    """The initial weights too: both draw them with PyTorch's default, in the same order."""
    torch.manual_seed(0)
    theirs = published(image_px, features=4).train(training)
    torch.manual_seed(0)
    ours = VGGDiscriminator(image_px=image_px, features=4).train(training)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    image = torch.rand(2, 3, image_px, image_px)
    logits, expected = ours(image), logits_of(theirs, image)
    assert logits.shape == (2, 1)
    torch.testing.assert_close(logits, expected)
    logits.sum().backward(), expected.sum().backward()
    for (name, own), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, their.grad, msg=name)
    for (name, own), their in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(own, their, msg=name)


def test_features_are_the_activations_of_all_convolutions():
    ours = VGGDiscriminator(image_px=128, features=4).eval()
    image, seen = torch.rand(2, 3, 128, 128), []
    for name, module in ours.named_modules():
        if name.startswith("bn"):  # the input of a LeakyReLU, also where it is the identity
            module.register_forward_hook(lambda _, __, output: seen.append(nn.functional.leaky_relu(output, 0.2)))
    logits, features = ours(image, return_features=True)
    assert len(features) == len(seen) == 10
    assert all(torch.equal(feature, expected) for feature, expected in zip(features, seen, strict=True))
    assert torch.equal(logits, ours(image))


@pytest.mark.parametrize(("image_px", "millions"), [(128, 14.50), (256, 21.06)])
def test_has_the_published_number_of_parameters(image_px, millions):
    with torch.device("meta"):
        parameters = sum(p.numel() for p in VGGDiscriminator(image_px=image_px).parameters())
        assert parameters == sum(p.numel() for p in published(image_px, 64).parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.005)


@SIZES
def test_images_of_another_size_are_refused(image_px):
    with pytest.raises(UserError, match=rf"images of 64x{image_px} pixels, but was built for {image_px}x{image_px}"):
        VGGDiscriminator(image_px=image_px, features=4)(torch.zeros(1, 3, 64, image_px))


def test_compiles_to_one_graph():
    torch.manual_seed(0)
    discriminator, image = VGGDiscriminator(features=4), torch.rand(2, 3, 128, 128)
    compiled = torch.compile(discriminator, backend="eager", fullgraph=True)  # raises if it has to break the graph
    torch.testing.assert_close(compiled(image), discriminator(image))
