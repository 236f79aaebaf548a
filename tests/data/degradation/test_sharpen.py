import cv2
import numpy as np
import pytest
import torch

from sed_sr.data.degradation.sharpen import sharpen


def opencv_sharpen(image, *, kernel_px, weight, threshold):
    """(H, W, 3) -> (H, W, 3), from OpenCV's Gaussian alone; of sigma 0, it takes its own."""

    def smooth(values):
        return cv2.GaussianBlur(values, (kernel_px, kernel_px), 0, borderType=cv2.BORDER_REFLECT_101)

    residual = image - smooth(image)
    mask = smooth(np.where(np.abs(residual) > threshold / 255, 1.0, 0.0))
    return mask * np.clip(image + weight * residual, 0, 1) + (1 - mask) * image


def checkers(height, width, contrast):
    """(1, 3, H, W) around middle grey, with edges of the contrast given every 8 px."""
    y, x = np.indices((height, width)) // 8
    return torch.from_numpy(0.5 + contrast * ((y + x) % 2 - 0.5)).float().expand(1, 3, height, width)


@pytest.mark.parametrize(("kernel_px", "weight", "threshold"), [(51, 0.5, 10), (21, 1.5, 30), (15, 0.5, 0)])
@pytest.mark.parametrize("size", [(64, 80), (40, 33)])
def test_equals_the_definition_computed_with_opencv(kernel_px, weight, threshold, size):
    image = cv2.GaussianBlur(np.random.default_rng(0).random((*size, 3)), (5, 5), 0)
    expected = opencv_sharpen(image, kernel_px=kernel_px, weight=weight, threshold=threshold)
    hr = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    sharp = sharpen(hr, kernel_px=kernel_px, weight=weight, threshold=threshold)
    np.testing.assert_allclose(sharp[0].permute(1, 2, 0).numpy(), expected, atol=1e-4)
    assert np.abs(expected - image).mean() > 0.005


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_a_flat_image_stays_as_it_is(level):
    flat = torch.full((1, 3, 60, 70), level)
    torch.testing.assert_close(sharpen(flat, kernel_px=51, weight=0.5, threshold=0.1), flat)


def test_edges_grow_only_above_the_threshold():
    faint, strong = checkers(96, 96, 9 / 255), checkers(96, 96, 60 / 255)
    torch.testing.assert_close(sharpen(faint, kernel_px=51, weight=0.5, threshold=10), faint, atol=1e-6, rtol=0)
    sharp = sharpen(strong, kernel_px=51, weight=0.5, threshold=10)
    assert sharp.std() > 1.2 * strong.std()


def test_stays_within_the_range_of_images():
    sharp = sharpen(checkers(96, 80, 1.0), kernel_px=51, weight=2.0, threshold=10)
    assert sharp.min() == 0
    assert sharp.max() == 1


def test_each_image_of_a_batch_is_sharpened_alone():
    hr = torch.rand(3, 3, 48, 56, generator=torch.Generator().manual_seed(0))
    together = sharpen(hr, kernel_px=51, weight=0.5, threshold=10)
    alone = [sharpen(image[None], kernel_px=51, weight=0.5, threshold=10) for image in hr]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)


def test_stays_on_the_device_of_its_images(fake_gpu):
    hr = torch.empty(2, 3, 60, 64, device=fake_gpu)
    sharp = sharpen(hr, kernel_px=51, weight=0.5, threshold=10)
    assert sharp.device == hr.device
    assert sharp.shape == hr.shape
