"""Semantic extractor: equality with reference outputs, open_clip, timm and torchvision; sizes; errors."""

import open_clip
import pytest
import timm
import torch
import torchvision
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize

from sed_sr.models.semantic_extractor import SemanticExtractor
from sed_sr.options.errors import UserError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def state(fill):
    """A state dict of CLIP's image encoder with OpenAI's names, filled by a function of the names."""
    shapes = {name: value.shape for name, value in SemanticExtractor().backbone.encoder.network.state_dict().items()}
    return {
        name: torch.from_numpy(fill.fill(name, shape))
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.fixture(scope="module")
def extractor(state):
    return SemanticExtractor(state=state)


@pytest.fixture
def hr():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_equals_the_reference_output(extractor, fill, reference):
    output = torch.from_numpy(reference("semantic_extractor_rn50")["output"])
    features = extractor(torch.from_numpy(fill.image("image", (1, 3, 64, 64))))
    torch.testing.assert_close(features, output, rtol=0, atol=1e-4 * output.std().item())


def test_features_have_the_stated_channels_and_stride(extractor, hr):
    assert extractor(hr).shape == (2, extractor.channels, 32 // extractor.stride, 48 // extractor.stride)


def test_parameters_and_statistics_are_frozen(extractor, hr):
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    features = extractor.train()(hr.requires_grad_())
    assert not features.requires_grad
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not any(module.training for module in extractor.backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in extractor.state_dict().items())


def test_features_do_not_depend_on_other_images_of_the_batch(extractor, hr):
    torch.testing.assert_close(extractor.train()(hr)[:1], extractor(hr[:1]), rtol=1e-4, atol=1e-4)


def test_batch_statistics_restore_the_released_behaviour(state, hr):
    extractor = SemanticExtractor(state=state, batch_statistics=True)
    before = extractor.backbone.encoder.network.bn1.running_mean.clone()
    together = extractor.eval()(hr)  # eval() does not change the mode either
    assert not together.requires_grad
    assert not torch.allclose(together[:1], extractor(hr[:1]), rtol=1e-2, atol=1e-2)
    assert not torch.equal(extractor.backbone.encoder.network.bn1.running_mean, before)


def test_batch_statistics_without_batchnorm_raise():
    with pytest.raises(UserError, match=r"batch_statistics needs BatchNorm, and timm/convnext_atto has none"):
        SemanticExtractor(model="timm/convnext_atto", batch_statistics=True)


@pytest.mark.parametrize("model", ["clip/RN50", "timm/vit_tiny_patch16_224"])
def test_random_weights_are_reproducible_and_leave_the_global_generator_unchanged(model):
    torch.manual_seed(1)
    first = SemanticExtractor(model=model).state_dict()
    drawn = torch.rand(4)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(4), drawn)
    second = SemanticExtractor(model=model).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_entries_of_the_whole_clip_model_are_ignored(state, extractor, hr):
    whole = {f"visual.{name}": value for name, value in state.items()}
    whole["visual.layer4.0.conv1.weight"] = whole["transformer.resblocks.0.ln_1.weight"] = torch.zeros(1)
    assert torch.equal(SemanticExtractor(state=whole)(hr), extractor(hr))


def test_missing_and_misshapen_weights_raise_with_their_name(state):
    with pytest.raises(UserError, match=r"`layer1\.0\.conv1\.weight` of shape .* lack it"):
        SemanticExtractor(state={name: value for name, value in state.items() if not name.startswith("layer")})
    with pytest.raises(UserError, match=r"clip/RN50 .*`conv1\.weight` of shape \(32, 3, 3, 3\).*\(64, 3, 7, 7\)"):
        SemanticExtractor(state={"visual.conv1.weight": torch.zeros(64, 3, 7, 7)})


def output_of(network, layer, x):
    """The output of a layer of the whole network for a normalised image."""
    outputs = []
    hook = network.get_submodule(layer).register_forward_hook(lambda module, given, output: outputs.append(output))
    with torch.no_grad():
        network.eval()(x)
    hook.remove()
    return outputs[0].clone()


def as_map(tokens, rows):
    """Tokens after a class token -> (B, channels, h, w)."""
    return tokens[:, 1:].unflatten(1, (rows, -1)).movedim(-1, 1)


def perturbed(network):
    """Change all weights and statistics, so that none is zero or one by its initialisation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.02 * torch.rand(value.shape, generator=generator))
    return network


def test_torchvision_weights_give_torchvision_features():
    network = perturbed(torchvision.models.resnet18(weights=None))
    extractor = SemanticExtractor(model="timm/resnet18.tv_in1k", layer="16", state=network.state_dict())
    image = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(extractor(image), output_of(network, "layer3", normalize(image, *IMAGENET)))


def test_torchvision_vgg_weights_give_torchvision_features():
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"])
    network = perturbed(nn.ModuleDict({"features": features}))
    extractor = SemanticExtractor(model="timm/vgg11.tv_in1k", layer="16", state=network.state_dict())
    image = torch.rand(1, 3, 64, 64)
    # 19: the last ReLU, before the last pooling
    torch.testing.assert_close(extractor(image), output_of(features, "19", normalize(image, *IMAGENET)))
    assert {name.split(".")[0] for name, _ in extractor.backbone.encoder.network.named_parameters()} == {"features"}


@pytest.mark.parametrize(
    ("model", "layer", "side", "statistics"),
    [
        ("convnext_atto.d2_in1k", "stages.2", 96, IMAGENET),
        ("vit_tiny_patch16_224.augreg_in21k", "blocks.5", 224, ((0.5,) * 3, (0.5,) * 3)),
    ],
)
def test_features_equal_those_of_the_whole_timm_model(model, layer, side, statistics):
    network = perturbed(timm.create_model(model))
    extractor = SemanticExtractor(model=f"timm/{model}", layer=layer, state=network.state_dict())
    image = torch.rand(1, 3, side, side)
    expected = output_of(network, layer, normalize(image, *statistics))
    expected = as_map(expected, side // extractor.stride) if expected.ndim == 3 else expected
    torch.testing.assert_close(extractor(image), expected)


def test_dinov2_weights_of_the_authors_give_its_features():
    network = perturbed(timm.create_model("vit_small_patch14_dinov2.lvd142m", depth=2))
    published = network.state_dict() | {"mask_token": torch.zeros(1, 384)}  # not used by timm
    extractor = SemanticExtractor(model="timm/vit_small_patch14_dinov2.lvd142m", layer="blocks.1", state=published)
    image = torch.rand(1, 3, 518, 518)  # the size of its positional embeddings
    expected = as_map(output_of(network, "blocks.1", normalize(image, *IMAGENET)), 37)
    torch.testing.assert_close(extractor(image), expected)


def test_clip_vit_equals_open_clip_block_by_block():
    blocks = 3
    size = {"image_size": 224, "patch_size": 32, "width": 768, "layers": blocks, "heads": 12, "output_dim": 512}
    tower = perturbed(VisionTransformer(**size, mlp_ratio=4, act_layer=QuickGELU))
    extractor = SemanticExtractor(model="clip/ViT-B-32", layer=f"blocks.{blocks - 1}", state=tower.state_dict())
    image = torch.rand(1, 3, 224, 224)
    normalised = normalize(image, *CLIP)
    for block in range(blocks):
        expected = output_of(tower, f"transformer.resblocks.{block}", normalised)
        torch.testing.assert_close(
            output_of(extractor.backbone.encoder, f"network.blocks.{block}", normalised), expected, rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(extractor(image), as_map(expected, 7), rtol=1e-4, atol=1e-4)
    whole = {f"visual.{name}": value for name, value in tower.state_dict().items()} | {"logit_scale": torch.ones(())}
    converted = extractor.backbone.encoder.convert(whole)
    assert all(
        torch.equal(value, converted[name]) for name, value in extractor.backbone.encoder.network.state_dict().items()
    )


@pytest.mark.parametrize("tower", ["RN50", "RN101"])
def test_clip_resnets_have_the_shapes_of_open_clip(tower):
    with torch.device("meta"):
        whole = open_clip.create_model(tower, device="meta").visual.state_dict()
    network = SemanticExtractor(model=f"clip/{tower}", layer="32").backbone.encoder.network
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in whole.items() if not name.startswith("attnpool.")
    }


@pytest.mark.parametrize(
    ("model", "layer", "channels", "stride"),
    [
        ("clip/RN50", "layer1", 256, 4),
        ("clip/RN50", "8", 512, 8),
        ("clip/RN50", "32", 2048, 32),
        ("timm/resnet18", "4", 64, 4),
        ("timm/resnet18", "layer4", 512, 32),
        ("timm/convnext_atto", "8", 80, 8),
        ("timm/vit_tiny_patch16_224", "blocks.0", 192, 16),
        ("timm/vit_small_patch14_dinov2", "blocks.1", 384, 14),
        ("timm/swin_tiny_patch4_window7_224", "16", 384, 16),
    ],
)
def test_channels_and_stride_describe_the_map(model, layer, channels, stride):
    extractor = SemanticExtractor(model=model, layer=layer)
    features = extractor(torch.rand(1, 3, 3 * stride, 5 * stride))
    assert features.shape == (1, extractor.channels, 3, 5) == (1, channels, 3, 5)
    assert extractor.stride == stride


def test_stride_selects_its_deepest_layer():
    image = torch.rand(1, 3, 32, 32)
    by_stride, last, before = (
        SemanticExtractor(model="timm/vit_tiny_patch16_224", layer=layer)(image)
        for layer in ("16", "blocks.11", "blocks.10")
    )
    assert torch.equal(by_stride, last)
    assert not torch.allclose(by_stride, before)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("clip/RN50", "8"),
        ("timm/resnet18", "8"),
        ("timm/convnext_atto", "16"),
        ("timm/vit_tiny_patch16_224", "blocks.2"),
    ],
)
def test_parameters_that_features_do_not_depend_on_are_dropped(model, layer):
    encoder = SemanticExtractor(model=model, layer=layer).requires_grad_().backbone.encoder
    encoder(torch.rand(1, 3, 32, 32))[0].sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("height", "width"), [(70, 100), (41, 64), (16, 5)])
@pytest.mark.parametrize("model", ["timm/resnet18", "timm/vit_tiny_patch16_224"])
def test_map_covers_the_whole_image_of_any_size(model, height, width):
    extractor = SemanticExtractor(model=model, layer="layer1" if "resnet" in model else "blocks.0")
    image = torch.full((1, 3, height, width), 0.5)
    features = extractor(image)
    assert features.shape[-2:] == tuple(max(1, round(side / extractor.stride)) for side in (height, width))
    for row, column, position in ((0, 0, 0), (-1, -1, -1)):
        touched = image.clone()
        touched[..., row, column] = 1
        change = (extractor(touched) - features).norm(dim=1).flatten()
        assert change.argmax() == range(len(change))[position]


def test_images_whose_sides_are_multiples_of_the_stride_are_not_resized(monkeypatch):
    monkeypatch.setattr(F, "interpolate", None)
    SemanticExtractor(model="timm/resnet18")(torch.rand(1, 3, 32, 48))


@pytest.mark.parametrize("model", ["clip/RN50", "timm/vit_tiny_patch16_224", "timm/convnext_atto"])
def test_features_are_close_in_bfloat16_and_channels_last(model):
    extractor = SemanticExtractor(model=model)
    image = torch.rand(2, 3, 40, 64)
    expected = extractor(image)
    extractor = extractor.to(memory_format=torch.channels_last)
    image = image.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(extractor(image), expected, rtol=1e-3, atol=1e-3 * expected.std().item())
    with torch.autocast("cpu", torch.bfloat16):
        features = extractor(image)
    assert (features.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("RN50", "'RN50' was given, but clip/.* or timm/"),
        ("clip/ViT-B/32", "no model 'ViT-B/32', but RN50, .*did you mean ViT-B-32"),
        ("timm/resnet50.tv_in1", "no model 'resnet50.tv_in1'; did you mean resnet50.tv_in1k"),
        ("timm/hf-hub:someone/model", "no model 'hf-hub:someone/model'"),
    ],
)
def test_unknown_model_raises_with_close_matches(model, message):
    with pytest.raises(UserError, match=message):
        SemanticExtractor(model=model)


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        ("clip/RN50", "layr3", r"4 or 8 or 16 or 32, or a name, of layer1 \(4\), layer2 \(8\), .*did you mean layer3"),
        ("clip/RN50", "2", "no layer '2'"),
        ("timm/vit_small_patch14_dinov2", "16", r"give a stride, 14, or a name, of blocks.0 \(14\), .*blocks.11"),
    ],
)
def test_unknown_layer_raises_with_the_known_layers(model, layer, message):
    with pytest.raises(UserError, match=message):
        SemanticExtractor(model=model, layer=layer)


@pytest.mark.parametrize(
    ("model", "layer", "reason"),
    [("timm/convit_tiny", "16", "doesn't match"), ("timm/inception_v3", "32", "4x6 strides become 2x4 positions")],
)
def test_model_with_a_fixed_image_size_raises(model, layer, reason):
    with pytest.raises(UserError, match=rf"{model} .*images of any size.*{reason}"):
        SemanticExtractor(model=model, layer=layer)


def test_weights_that_do_not_fit_a_timm_model_raise():
    resnet = timm.create_model("resnet18").state_dict()
    del resnet["layer2.0.conv1.weight"]
    with pytest.raises(UserError, match=r"timm/resnet18 .*`layer2\.0\.conv1\.weight` .* lack it"):
        SemanticExtractor(model="timm/resnet18", state=resnet)
    SemanticExtractor(model="timm/resnet18", layer="4", state=resnet)  # does not need layer2
    for model in ("timm/vit_tiny_patch16_224", "timm/convnext_atto", "clip/RN50"):
        with pytest.raises(UserError, match=r"weights of .* were expected"):
            SemanticExtractor(model=model, state=resnet)
    with pytest.raises(UserError, match="timm cannot convert those given"):
        SemanticExtractor(
            model="timm/vit_tiny_patch16_224", state={"pos_embed": torch.zeros(1), "mask_token": torch.zeros(1)}
        )
