"""Discriminators of other projects return the same logits here; what does not fit is refused.

The networks of other projects are written again here, with their names and PyTorch's own spectral norm.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm

from sed_sr.models.discriminators import PatchDiscriminator, UNetDiscriminator
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.swinir import SwinIR
from sed_sr.models.vgg_discriminator import VGGDiscriminator
from sed_sr.options.errors import UserError
from sed_sr.utils.weights import checkpoint
from sed_sr.utils.weights.discriminator_weights import discriminator_weights, load_shared
from sed_sr.utils.weights.formats import in_basicsr_names

BOTH = pytest.mark.parametrize("cls", [PatchDiscriminator, UNetDiscriminator])
FEATURES, SEMANTIC = 8, 64
SIDE_PX = 64


def lrelu(x):
    return F.leaky_relu(x, 0.2)


def double(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class BasicSRUNet(nn.Module):
    """`UNetDiscriminatorSN` of BasicSR, the discriminator of Real-ESRGAN."""

    def __init__(self, features=FEATURES):
        super().__init__()
        n = features
        self.conv0 = nn.Conv2d(3, n, 3, 1, 1)
        channels = [(n, 2 * n), (2 * n, 4 * n), (4 * n, 8 * n), (8 * n, 4 * n), (4 * n, 2 * n), (2 * n, n)]
        for number, (before, after) in enumerate([*channels, (n, n), (n, n)], start=1):
            kernel = (4, 2, 1) if number <= 3 else (3, 1, 1)
            setattr(self, f"conv{number}", spectral_norm(nn.Conv2d(before, after, *kernel, bias=False)))
        self.conv9 = nn.Conv2d(n, 1, 3, 1, 1)

    def forward(self, image, semantic=None):
        x0 = lrelu(self.conv0(image))
        x1 = lrelu(self.conv1(x0))
        x2 = lrelu(self.conv2(x1))
        x = lrelu(self.conv3(x2))
        x = lrelu(self.conv4(double(x))) + x2
        x = lrelu(self.conv5(double(x))) + x1
        x = lrelu(self.conv6(double(x))) + x0
        return self.conv9(lrelu(self.conv8(lrelu(self.conv7(x)))))


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    grid = SIDE_PX // 16
    image = torch.rand(2, 3, SIDE_PX, SIDE_PX, generator=generator)
    return image, torch.randn(2, SEMANTIC, grid, grid, generator=generator)


def ours(cls, semantic=SEMANTIC, features=FEATURES, seed=1, **more):
    torch.manual_seed(seed)
    discriminator = cls(semantic_channels=semantic, features=features, **more)
    with torch.no_grad():
        for name, parameter in discriminator.named_parameters():
            if "semantic_out" in name:
                parameter.normal_()  # as after training
    return discriminator


def trained(network, *inputs):
    """The network after a few passes in training mode, which move its singular vectors."""
    for _ in range(3):
        network(*inputs)
    return network.eval()


def load(discriminator, content, path=Path("netD.pth")):
    return load_shared(discriminator, discriminator_weights(content, path))


def spectral_vectors(discriminator):
    return {name: value.clone() for name, value in discriminator.named_buffers()}


@torch.no_grad()
def test_unet_of_basicsr_returns_the_same_logits_and_keeps_its_singular_vectors(tmp_path):
    torch.manual_seed(0)
    theirs, image = BasicSRUNet(), images()[0]
    trained(theirs, image)
    torch.save({"params": theirs.state_dict()}, tmp_path / "netD.pth")
    discriminator = ours(UNetDiscriminator, None).eval()
    found = load(discriminator, checkpoint.load(tmp_path / "netD.pth"), tmp_path / "netD.pth")
    assert found == f"starts from {tmp_path / 'netD.pth'}: a plain U-Net (8 features)"
    torch.testing.assert_close(discriminator(image), theirs(image), rtol=1e-5, atol=1e-6)
    for number in range(1, 9):
        layer, norm = getattr(theirs, f"conv{number}"), getattr(discriminator, f"conv{number}").parametrizations.weight
        assert torch.equal(norm[0]._u, layer.weight_u)
        assert torch.equal(norm[0]._v, layer.weight_v)


class BasicSRVGG(nn.Module):
    """`VGGStyleDiscriminator` of BasicSR, the discriminator of ESRGAN."""

    def __init__(self, side_px, features=FEATURES):
        super().__init__()
        n, self.levels = features, 6 if side_px == 256 else 5
        self.conv0_0, self.conv0_1 = nn.Conv2d(3, n, 3, 1, 1), nn.Conv2d(n, n, 4, 2, 1, bias=False)
        self.bn0_1 = nn.BatchNorm2d(n)
        for level in range(1, self.levels):
            before, after = (n * min(8, 2**power) for power in (level - 1, level))
            for half, conv in enumerate(
                (nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.Conv2d(after, after, 4, 2, 1, bias=False))
            ):
                setattr(self, f"conv{level}_{half}", conv)
                setattr(self, f"bn{level}_{half}", nn.BatchNorm2d(after))
        self.linear1, self.linear2 = nn.Linear(8 * n * 4 * 4, 100), nn.Linear(100, 1)

    def forward(self, x):
        x = lrelu(self.bn0_1(self.conv0_1(lrelu(self.conv0_0(x)))))
        for level in range(1, self.levels):
            for half in (0, 1):
                x = lrelu(getattr(self, f"bn{level}_{half}")(getattr(self, f"conv{level}_{half}")(x)))
        return self.linear2(lrelu(self.linear1(x.view(x.size(0), -1))))


@pytest.mark.parametrize("side_px", [128, 256])
@torch.no_grad()
def test_vgg_of_basicsr_returns_the_same_logits_and_keeps_its_statistics(tmp_path, side_px):
    torch.manual_seed(0)
    theirs, image = BasicSRVGG(side_px), torch.rand(2, 3, side_px, side_px)
    trained(theirs, image)
    path = tmp_path / "net_d.pth"
    torch.save({"params": theirs.state_dict()}, path)
    discriminator = VGGDiscriminator(image_px=side_px, features=FEATURES).eval()
    found = load(discriminator, checkpoint.load(path), path)
    assert found == f"starts from {path}: a plain VGG for images of {side_px} px (8 features)"
    torch.testing.assert_close(discriminator(image), theirs(image))
    assert discriminator.bn1_0.num_batches_tracked == 3
    with pytest.raises(
        UserError, match=rf"images of {side_px} px.* where the options ask for VGG for images of {384 - side_px} px"
    ):
        load(VGGDiscriminator(image_px=384 - side_px, features=FEATURES), checkpoint.load(path), path)


@torch.no_grad()
def test_singular_vectors_that_old_files_lack_are_computed():
    torch.manual_seed(0)
    theirs, image = BasicSRUNet(), images()[0]
    for _ in range(300):  # until the power iterations have converged
        for number in range(1, 9):
            getattr(theirs, f"conv{number}")(torch.zeros(1, getattr(theirs, f"conv{number}").in_channels, 4, 4))
    state = {name: value for name, value in theirs.eval().state_dict().items() if not name.endswith("weight_v")}
    state |= {f"conv{number}.weight": torch.zeros(1) for number in range(1, 9)}  # the quotient, in old files
    discriminator = ours(UNetDiscriminator, None).eval()
    load(discriminator, state)
    torch.testing.assert_close(discriminator(image), theirs(image), rtol=1e-3, atol=1e-4)


@BOTH
@torch.no_grad()
def test_semantic_discriminator_starts_as_the_plain_one(cls):
    plain, semantic = ours(cls, None, seed=2), ours(cls)
    image, features = images()
    trained(plain, image)
    before = semantic.fusion2.refine.weight.clone()
    shared = len(plain.state_dict())
    found = load(semantic, plain.state_dict())
    assert f"; {shared} of {len(semantic.state_dict())} tensors, those that it shares" in found
    assert torch.equal(semantic.fusion2.refine.weight, before)
    torch.testing.assert_close(semantic.eval()(image, features), plain(image), rtol=1e-4, atol=1e-5)
    semantic.train(), plain.train()
    torch.testing.assert_close(semantic(image, features), plain(image), rtol=1e-4, atol=1e-5)


@BOTH
def test_training_lets_semantics_into_a_discriminator_that_started_as_a_plain_one(cls):
    torch.manual_seed(1)
    semantic = cls(semantic_channels=SEMANTIC, features=FEATURES)
    load(semantic, ours(cls, None).state_dict())
    optimizer, (image, features) = torch.optim.Adam(semantic.parameters(), lr=1e-3), images()
    for _ in range(4):
        optimizer.zero_grad()
        target = torch.linspace(-1, 1, semantic(image, features).shape[-1])
        (semantic(image, features) - target).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in semantic.parameters())
    assert not torch.equal(semantic(image, features), semantic(image, -features))


@BOTH
def test_plain_discriminator_takes_the_plain_layers_of_a_semantic_one(cls):
    plain, semantic = ours(cls, None), ours(cls, seed=2)
    found = load(plain, semantic.state_dict())
    own, theirs = plain.state_dict(), semantic.state_dict()
    assert found.endswith(f"; {len(own)} of its {len(theirs)} tensors, without the fusion blocks")
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())


def generators():
    rrdb = RRDBNet(features=4, blocks=1, growth=2).state_dict()
    swinir = SwinIR(embed_dim=12, depths=(2,), heads=(2,), window=4).state_dict()
    return {"rrdb": rrdb, "basicsr": {"params_ema": in_basicsr_names(rrdb)}, "swinir": {"params": swinir}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: generators()["rrdb"], r"holds RRDB \(1 block.*the weights of a discriminator were expected"),
        (lambda: generators()["basicsr"], r"holds RRDB \(1 block.*the weights of a discriminator were expected"),
        (lambda: generators()["swinir"], r"holds SwinIR \(.*the weights of a discriminator were expected"),
        (lambda: {"train_step": {"generator": {}}}, "PSNR-oriented training, which has no discriminator"),
        (lambda: {"train_step": {"discriminator": 3}}, "holds no discriminator weights"),
        (lambda: {"params": {"conv0.weight": [1]}}, "holds no discriminator weights"),
        (lambda: {"anything": torch.zeros(2)}, "holds an unknown network, which does not fit"),
        (lambda: ours(PatchDiscriminator).state_dict(), "a semantic PatchGAN.*type PatchGAN where.*U-Net"),
        (lambda: ours(PatchDiscriminator, None).state_dict(), "a plain PatchGAN.*type PatchGAN where.*U-Net"),
        (lambda: BasicSRVGG(128).state_dict(), "a plain VGG.*type VGG for images of 128 px where the options.*U-Net"),
        (lambda: ours(UNetDiscriminator, features=16).state_dict(), "features 16 where the options ask for 8"),
        (lambda: ours(UNetDiscriminator, None, 16).state_dict(), "features 16 where the options ask for 8"),
        (lambda: ours(UNetDiscriminator, 128).state_dict(), "semantic channels 128 where the options ask for 64"),
        (lambda: ours(UNetDiscriminator, fusion="concatenation").state_dict(), "fusion concatenation where.*cross"),
        (lambda: ours(UNetDiscriminator, semantic_stride=8).state_dict(), r"does not fit.*of another shape: fusion1"),
        (lambda: {**ours(UNetDiscriminator).state_dict(), "conv9.bias": 1}, "holds no discriminator weights"),
        (lambda: BasicSRUNet().state_dict() | {"conv4.weight_u": torch.zeros(())}, "does not fit.*conv4"),
        (lambda: BasicSRUNet().state_dict() | {"conv0.weight": torch.zeros(())}, "have other shapes"),
        (lambda: BasicSRUNet().state_dict() | {"conv7.weight_u": torch.tensor([torch.nan])}, "NaN"),
        (
            lambda: {
                f"{net}.{name}": value for net in ("a", "b") for name, value in BasicSRUNet().state_dict().items()
            },
            "several networks",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(content, message):
    discriminator = ours(UNetDiscriminator)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load(discriminator, content())
    assert "\n" not in str(caught.value)
    assert "netD.pth" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
