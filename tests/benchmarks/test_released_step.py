"""The step to compare with does the same work: its losses are those of the project's step."""

from pathlib import Path

import pytest
import torch

from benchmarks.random_step import random_recipe, random_step
from benchmarks.released_step import ReleasedStep

ROOT = Path(__file__).parents[2]
TINY = {
    "generator__blocks": 1,
    "generator__features": 8,
    "generator__growth": 4,
    "discriminator__features": 8,
    "dataset__hr_patch_px": 64,
    "dataloader__batch_size": 2,
    "device": "cpu",
    "train__precision": "fp32",
}


@pytest.mark.parametrize("discriminator", ["P", "U"])
def test_released_style_step_has_the_losses_of_the_projects_step(discriminator):
    options = random_recipe(str(ROOT / f"options/train_rrdb_{discriminator}+SeD.yml"), **TINY)
    ours, batch = random_step(options, torch.device("cpu"))
    theirs = ReleasedStep(options, torch.device("cpu"))
    for _ in range(3):
        expected, found = ours(batch).terms, theirs(batch)
        # Spectral norms move on in each pass, and this step makes one pass more.
        for term in ("pixel", "perceptual", "gan"):
            assert found[term] == pytest.approx(expected[term], rel=1e-3)
        assert found["d_real_loss"] + found["d_fake_loss"] == pytest.approx(expected["d_loss"], rel=1e-3)
    assert theirs.generator.conv_last.weight.is_contiguous()
