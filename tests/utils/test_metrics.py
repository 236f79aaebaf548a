import math

import lpips
import numpy as np
import pytest
import torch
import torchvision
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from utils.errors import UserError
from utils.metrics import LPIPS, psnr_y, ssim_y


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


def test_default_border_of_four_pixels_does_not_count():
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


def test_images_of_different_sizes_are_refused_by_their_sizes():
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


@pytest.fixture(scope="module")
def alexnet():
    torch.manual_seed(0)
    return torchvision.models.alexnet()


@pytest.fixture(scope="module")
def alexnet_path(alexnet, tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrained") / "alexnet.pth"
    torch.save(alexnet.state_dict(), path)
    return path


def test_lpips_equals_the_package_with_its_own_loading(alexnet, alexnet_path, monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", lambda **_: alexnet)
    reference = lpips.LPIPS(net="alex", verbose=False)
    monkeypatch.undo()
    sr, hr = image_pair(64, 70)
    as_lpips_reads_files = [lpips.im2tensor(np.ascontiguousarray(image.permute(1, 2, 0))) for image in (sr, hr)]
    expected = reference(*as_lpips_reads_files).item()
    assert expected > 0
    assert LPIPS(alexnet_path)(sr, hr) == pytest.approx(expected, rel=1e-5)


def test_lpips_of_identical_images_is_zero(alexnet_path):
    image, _ = image_pair()
    assert LPIPS(alexnet_path)(image, image) == 0


def test_building_lpips_is_silent_and_leaves_random_numbers_alone(alexnet_path, capsys, recwarn):
    before = torch.get_rng_state()
    LPIPS(alexnet_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr() == ("", "")
    assert not recwarn.list


def test_lpips_refuses_images_that_vanish_in_the_backbone(alexnet_path):
    distance = LPIPS(alexnet_path)
    sr, hr = image_pair(31, 31)
    assert distance(sr, hr) > 0
    with pytest.raises(UserError, match="31x30 px is too small"):
        distance(sr[:, 1:], hr[:, 1:])


@pytest.mark.parametrize("state", [{"features.0.weight": torch.zeros(64, 3, 11, 11)}, {"conv": torch.zeros(1)}])
def test_lpips_refuses_a_file_that_is_not_alexnet(state, tmp_path):
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth is not torchvision's AlexNet"):
        LPIPS(tmp_path / "other.pth")
