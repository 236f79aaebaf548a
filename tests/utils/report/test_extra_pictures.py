"""Pictures of a discriminator's views for the report."""

import numpy as np
import pytest
import torch
from torch import nn

from sed_sr.models.discriminators import UNetDiscriminator
from sed_sr.utils.report.extra_pictures import discriminator_extra_pictures
from sed_sr.utils.visualization.discriminator_file import TrainedDiscriminator


class Colours(nn.Module):
    """An extractor whose semantics are the mean colours of blocks of 16 pixels, each in 64 channels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(image, 16).repeat(1, 22, 1, 1)[:, :64]


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("fusion", "kinds"),
    [("cross-attention", ["semantics", "attention"]), ("concatenation", ["semantics"]), (None, [])],
)
def test_there_is_a_picture_for_each_title(fusion, kinds):
    if fusion is None:
        trained = TrainedDiscriminator(UNetDiscriminator(semantic_channels=None, features=8), None, "plain")
    else:
        trained = TrainedDiscriminator(
            UNetDiscriminator(semantic_channels=64, features=8, fusion=fusion), Colours(), "semantic"
        )
    extra = discriminator_extra_pictures(trained, ["a", "b"])
    assert list(extra.titles) == [*kinds, "real/fake: HR", "real/fake: a", "real/fake: b"]
    drawn = extra.draw(photo(64, 64), [None, photo(68, 64)])
    assert [picture is None for picture in drawn] == [*(False for _ in kinds), False, True, False]
    assert extra.draw(photo(64, 31), [photo(64, 31)] * 2) == [None] * len(extra.titles)
