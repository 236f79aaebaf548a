"""The feature matching loss against its definition."""

import pytest
import torch

from sed_sr.models.losses.feature_matching import feature_matching_loss


def test_is_the_mean_over_layers_of_mean_absolute_differences():
    sr = [torch.full((2, 4, 8, 8), 1.0), torch.full((2, 8, 4, 4), 5.0)]
    hr = [torch.full((2, 4, 8, 8), 1.5), torch.full((2, 8, 4, 4), 2.0)]
    assert feature_matching_loss(sr, hr).item() == pytest.approx((0.5 + 3.0) / 2)
