import math
import warnings
from types import SimpleNamespace

import lpips
import numpy as np
import pytest
import safetensors.torch
import skimage.data
import timm
import torch
import torchvision
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchvision.transforms.functional import gaussian_blur

from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.metrics import (
    ALEXNET,
    BUILT_IN,
    LPIPS,
    VGG16,
    FeatureDistance,
    build_metrics,
    metric_weights,
    psnr_y,
    ssim_y,
)
from sed_sr.utils.weights.catalogue import PUBLISHED
from sed_sr.utils.weights.efficientnet_lite import efficientnet_lite_state

CPU = torch.device("cpu")


def image_pair(height=40, width=53, *, seed=0):
    """A smooth image and a noisy version of it, (3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 7, 9, generator=generator) * 255
    hr = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    sr = hr + 12 * torch.randn(hr.shape, generator=generator)
    return sr.clamp(0, 255).byte(), hr.clamp(0, 255).byte()


def luma_by_skimage(image, border_px):
    y = rgb2ycbcr(image.permute(1, 2, 0).numpy())[..., 0]
    return y[border_px : y.shape[0] - border_px, border_px : y.shape[1] - border_px]


@pytest.mark.parametrize("border_px", [0, 4])
@pytest.mark.parametrize("seed", range(3))
def test_psnr_equals_skimage_on_luma(seed, border_px):
    sr, hr = image_pair(seed=seed)
    expected = peak_signal_noise_ratio(luma_by_skimage(hr, border_px), luma_by_skimage(sr, border_px), data_range=255)
    assert psnr_y(sr, hr, crop_border_px=border_px) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("border_px", [0, 4])
@pytest.mark.parametrize("seed", range(3))
def test_ssim_equals_skimage_on_the_valid_region_of_luma(seed, border_px):
    sr, hr = image_pair(seed=seed)
    _, ssim_map = structural_similarity(
        luma_by_skimage(hr, border_px),
        luma_by_skimage(sr, border_px),
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert ssim_y(sr, hr, crop_border_px=border_px) == pytest.approx(ssim_map[5:-5, 5:-5].mean(), abs=1e-9)


def test_luma_is_not_rounded():
    # One grey level of blue moves Y by 24.966 / 255, which rounding would hide or enlarge.
    hr = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    sr = hr.clone()
    sr[2] += 1
    assert psnr_y(sr, hr) == pytest.approx(20 * math.log10(255 / (24.966 / 255)))


def test_default_border_of_four_pixels_is_ignored():
    sr, hr = image_pair()
    spoilt = 255 - sr
    spoilt[:, 4:-4, 4:-4] = sr[:, 4:-4, 4:-4]
    assert psnr_y(spoilt, hr) == psnr_y(sr, hr)
    assert ssim_y(spoilt, hr) == ssim_y(sr, hr)
    one_pixel_more = sr.clone()
    one_pixel_more[:, 4, 4] = 255 - sr[:, 4, 4]
    assert psnr_y(one_pixel_more, hr) != psnr_y(sr, hr)


def test_identical_images_score_best():
    image, _ = image_pair()
    assert psnr_y(image, image) == math.inf
    assert ssim_y(image, image) == pytest.approx(1)


def test_images_of_different_sizes_are_refused():
    sr, hr = image_pair()
    with pytest.raises(UserError, match=r"53x39 px.*53x40 px"):
        psnr_y(sr[:, 1:], hr)


def test_images_smaller_than_the_window_are_refused():
    sr, hr = image_pair(19, 19)
    ssim_y(sr, hr)
    with pytest.raises(UserError, match=r"19x18 px is too small.*19 px"):
        ssim_y(sr[:, 1:], hr[:, 1:])
    with pytest.raises(UserError, match="too small"):
        psnr_y(sr[:, :8], hr[:, :8])


def networks():
    vgg = torchvision.models.vgg
    return {ALEXNET: torchvision.models.alexnet().features, VGG16: vgg.make_layers(vgg.cfgs["D"])}


@pytest.fixture(scope="module")
def backbone_paths(tmp_path_factory):
    """Random weights in torchvision's format; the last layers of the classifiers are not used."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("pretrained")
    for backbone, features in networks().items():
        state = {f"features.{name}": weights for name, weights in features.state_dict().items()}
        torch.save(state, root / backbone.file)
    return root


@pytest.mark.parametrize("backbone", [ALEXNET, VGG16], ids=lambda backbone: backbone.name)
def test_lpips_equals_the_package_with_its_own_loading(backbone, backbone_paths, monkeypatch):
    state = torch.load(backbone_paths / backbone.file)
    features = networks()[backbone]
    features.load_state_dict({name.removeprefix("features."): weights for name, weights in state.items()})
    for classifier in ("alexnet", "vgg16"):
        monkeypatch.setattr(torchvision.models, classifier, lambda **_: SimpleNamespace(features=features))
    reference = lpips.LPIPS(net=backbone.lpips_name, verbose=False)
    monkeypatch.undo()
    sr, hr = image_pair(64, 70)
    as_lpips_reads_files = [lpips.im2tensor(np.ascontiguousarray(image.permute(1, 2, 0))) for image in (sr, hr)]
    expected = reference(*as_lpips_reads_files).item()
    assert expected > 0
    assert LPIPS(backbone_paths / backbone.file, backbone=backbone)(sr, hr) == pytest.approx(expected, rel=1e-5)


def test_lpips_of_identical_images_is_zero(backbone_paths):
    image, _ = image_pair()
    assert LPIPS(backbone_paths / ALEXNET.file)(image, image) == 0


def test_building_lpips_is_silent_and_does_not_change_the_random_state(backbone_paths, capsys, recwarn):
    before = torch.get_rng_state()
    LPIPS(backbone_paths / ALEXNET.file)
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("backbone", [ALEXNET, VGG16], ids=lambda backbone: backbone.name)
def test_lpips_refuses_images_that_are_too_small_for_the_backbone(backbone, backbone_paths):
    distance = LPIPS(backbone_paths / backbone.file, backbone=backbone)
    side = backbone.min_side_px
    sr, hr = image_pair(side, side)
    assert distance(sr, hr) > 0
    with pytest.raises(UserError, match=f"{side}x{side - 1} px is too small"):
        distance(sr[:, 1:], hr[:, 1:])
    layers = distance._network.features  # which indeed cannot process them
    with pytest.raises(RuntimeError):
        layers(torch.zeros(1, 3, side - 1, side))


@pytest.mark.parametrize("state", [{"features.0.weight": torch.zeros(64, 3, 11, 11)}, {"conv": torch.zeros(1)}])
def test_lpips_refuses_a_file_that_is_not_its_backbone(state, tmp_path):
    torch.save(state, tmp_path / "other.pth")
    for backbone in (ALEXNET, VGG16):
        with pytest.raises(UserError, match=rf"other\.pth is not torchvision's {backbone.name}"):
            LPIPS(tmp_path / "other.pth", backbone=backbone)


def test_missing_lpips_is_an_error_only_if_requested_by_name(tmp_path):
    nowhere = tmp_path / "file"
    nowhere.touch()  # a file instead of a folder, so that nothing can be downloaded
    assert set(build_metrics(None, pretrained_root=nowhere, device=CPU)) == {"psnr", "ssim"}
    assert set(build_metrics(("ssim",), pretrained_root=nowhere, device=CPU)) == {"ssim"}
    for name, backbone in (("lpips", "alexnet"), ("lpips-vgg", "vgg16")):
        with pytest.raises(UserError, match=backbone):
            build_metrics(("psnr", name), pretrained_root=nowhere, device=CPU)


@pytest.mark.parametrize(("names", "backbone"), [(None, ALEXNET), (("lpips-vgg",), VGG16)])
def test_damaged_backbone_of_lpips_is_an_error(names, backbone, tmp_path):
    (tmp_path / backbone.file).write_bytes(b"cut off")
    with pytest.raises(UserError, match=backbone.file):
        build_metrics(names, pretrained_root=tmp_path, device=CPU)


def test_checksum_of_the_backbone_is_verified_by_one_process_per_machine(backbone_paths, monkeypatch):
    compared = []
    monkeypatch.setattr("sed_sr.utils.weights.pretrained.verify", compared.append)
    for check_hash in (True, False):
        build_metrics(("lpips",), pretrained_root=backbone_paths, device=CPU, check_hash=check_hash)
    assert compared == [backbone_paths / ALEXNET.file]


def test_direction_of_each_metric(backbone_paths, monkeypatch):
    monkeypatch.setattr(
        "sed_sr.utils.evaluation.metrics.locate", lambda file, pretrained_root, check_hash: pretrained_root / file
    )
    sr, hr = image_pair(64, 64)
    metrics = build_metrics((*BUILT_IN, "gmsd", "piqe"), pretrained_root=backbone_paths, device=CPU)
    assert list(metrics) == [*BUILT_IN, "gmsd", "piqe"]
    for name, metric in metrics.items():
        assert metric.name == name
        if metric.needs_ground_truth:
            better, worse = metric.compute(hr, hr), metric.compute(sr, hr)
            assert (better < worse) == metric.lower_is_better
    assert not metrics["piqe"].needs_ground_truth
    assert metrics["piqe"].compute(sr, None) > 0


def test_files_that_metrics_need():
    assert metric_weights(("psnr", "lpips-vgg", "lpips", "dists")) == [VGG16.file, ALEXNET.file]
    assert {VGG16.file, ALEXNET.file} <= PUBLISHED.keys()


LITE0 = "timm/tf_efficientnet_lite0.in1k"


@pytest.fixture(scope="module")
def lite0():
    """The whole network with its ImageNet weights, and one without a head that returns the output of each stage."""
    state = efficientnet_lite_state(0)
    stages = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    stages.load_state_dict({name: value for name, value in state.items() if name in stages.state_dict()})
    return state, stages


def test_distance_in_features_equals_lpips_without_learned_weights(lite0):
    state, stages = lite0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips passes a deprecated argument to torchvision
        reference = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, lpips=False, verbose=False)
    # Both have five layers. Images in [-1, 1] are also what EfficientNet-Lite0 expects.
    reference.net, reference.scaling_layer = stages, torch.nn.Identity()
    distance = FeatureDistance(LITE0, state)
    for sr, hr in (image_pair(64, 96), image_pair(96, 64, seed=1)):
        with torch.inference_mode():
            expected = reference(*(image[None] / 127.5 - 1 for image in (sr, hr)))
        assert distance(sr, hr) == pytest.approx(expected.item(), rel=1e-5)


def test_distance_in_features_of_photographs_grows_with_blur(lite0):
    photo = torch.from_numpy(skimage.data.chelsea()).movedim(-1, 0)
    distance = FeatureDistance(LITE0, lite0[0])
    blurred = [gaussian_blur(photo, 13, sigma) for sigma in (0.5, 1.0, 2.0)]
    scores = [distance(image, photo) for image in (photo, *blurred)]
    assert scores[0] == 0
    assert scores == sorted(scores)


def test_distance_in_features_is_a_metric_by_the_name_of_its_model(lite0, tmp_path, monkeypatch):
    monkeypatch.setenv("SED_OFFLINE", "1")
    assert metric_weights(("psnr", LITE0)) == ["tf_efficientnet_lite0.in1k.safetensors"]
    with pytest.raises(UserError, match=r"tf_efficientnet_lite0\.in1k\.safetensors does not exist"):
        build_metrics((LITE0,), pretrained_root=tmp_path, device=CPU)
    safetensors.torch.save_file(lite0[0], tmp_path / "tf_efficientnet_lite0.in1k.safetensors")
    (metric,) = build_metrics((LITE0,), pretrained_root=tmp_path, device=CPU).values()
    assert (metric.name, metric.title) == (LITE0, "tf_efficientnet_lite0 distance")
    assert metric.lower_is_better
    sr, hr = image_pair(50, 70)
    assert metric.score(sr, hr, scale=4) == FeatureDistance(LITE0, lite0[0])(sr, hr)
    with pytest.raises(UserError, match="53x40 px cannot be compared"):
        metric.score(image_pair()[0], hr, scale=4)
    with pytest.raises(UserError, match="no model 'tf_efficientnet_lite9'; did you mean tf_efficientnet_lite"):
        build_metrics(("timm/tf_efficientnet_lite9",), pretrained_root=tmp_path, device=CPU)
